import itertools
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from finetune.data.duplicates import _close_hashes, exact_duplicates, join, near_duplicates
from finetune.data.inspection import Inspection, inspect_file
from finetune.data.sample import _photographs_folder

Painter = Callable[..., Path]
HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=12)


@given(HASHES, st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=9))))
def test_no_close_pair_is_missed(values: list[int], changes: list[tuple[int, set[int]]]) -> None:
    for source, bits in changes:
        if source < len(values):
            values = [*values, values[source] ^ sum(1 << bit for bit in bits)]
    values = list(dict.fromkeys(values))
    expected = [
        (one, other)
        for one, other in itertools.combinations(range(len(values)), 2)
        if (values[one] ^ values[other]).bit_count() <= 7
    ]
    found = _close_hashes([f"{value:016x}" for value in values])
    assert [(one, other) for one, near in found for other in near] == expected


def test_images_without_a_hash_are_left_out() -> None:
    texts = ["", "00" * 8, "", "00" * 8]
    inspections = [
        Inspection(Path(str(n)), content_hash=str(n), perceptual_hash=text)
        for n, text in enumerate(texts)
    ]
    small = np.random.default_rng(0).random((24, 24))
    assert near_duplicates(inspections, lambda _: small) == [(1, 3)]
    assert near_duplicates([]) == []


def near(
    contents: Sequence[str], hashes: Sequence[str], small: Callable[[Path], np.ndarray]
) -> list[tuple[int, int]]:
    inspections = [
        Inspection(Path(str(n)), size=1, content_hash=content, perceptual_hash=text)
        for n, (content, text) in enumerate(zip(contents, hashes, strict=True))
    ]
    return near_duplicates(inspections, small)


@pytest.mark.parametrize("equal", ["contents", "hashes", "hashes of one grey"])
def test_memory_is_proportional_to_the_number_of_images(equal: str) -> None:
    number = 3000  # 4.5 million pairs
    contents = ["same"] * number if equal == "contents" else [str(n) for n in range(number)]
    page = np.zeros((24, 24)) if equal == "hashes of one grey" else np.eye(24)
    tracemalloc.start()
    pairs = near(contents, ["f" * 16] * number, lambda _: page)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) == (number - 1 if equal == "hashes" else 0)
    assert peak < 6000 * number


def test_fifty_thousand_blank_pages_are_done_in_seconds() -> None:
    number, page = 50_000, np.eye(24)
    blank = Inspection(Path("x"), size=1, perceptual_hash="f" * 16)
    inspections = [replace(blank, content_hash=str(n)) for n in range(number)]
    assert len(near_duplicates(inspections, lambda _: page)) == number - 1


def test_a_series_of_images_that_each_look_like_the_next_is_one_group() -> None:
    values = [0x1111_1111_1111_1111 ^ ((1 << step) - 1) for step in range(0, 64, 4)]
    rng = np.random.default_rng(0)
    start, end = rng.random((24, 24)), rng.random((24, 24))
    shots = [start + (end - start) * step / 15 for step in range(16)]
    assert np.corrcoef(shots[0].ravel(), shots[-1].ravel())[0, 1] < 0.5
    texts = [f"{value:016x}" for value in values]
    pairs = near([str(n) for n in range(16)], texts, lambda path: shots[int(path.name)])
    assert len(pairs) == 15
    assert join(pairs) == [list(range(16))]


@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=4)))
def test_join_gives_the_connected_components(groups: list[list[int]]) -> None:
    components: list[set[int]] = []
    for group in groups:
        touching = [c for c in components if c & set(group)]
        components = [c for c in components if not c & set(group)]
        components.append(set(group).union(*touching))
    assert sorted(map(sorted, components)) == sorted(join(groups))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten different photographs, and one of them changed in the usual ways."""
    folder = tmp_path_factory.mktemp("photographs")
    names = ["coffee", "astronaut", "brick", "grass", "gravel", "moon", "page", "rocket.jpg",
             "motorcycle_left", "ihc"]  # fmt: skip
    for name in names:
        file = name if "." in name else f"{name}.png"
        with Image.open(_photographs_folder() / file) as image:
            image.convert("RGB").save(folder / f"{Path(name).stem}.png")
    with Image.open(folder / "coffee.png") as coffee:
        coffee.save(folder / "coffee_low_quality.jpg", quality=30)
        coffee.resize((150, 100)).save(folder / "coffee_small.webp")
        ImageEnhance.Brightness(coffee).enhance(1.15).save(folder / "coffee_brighter.png")
    (folder / "copy.png").write_bytes((folder / "moon.png").read_bytes())
    return folder


def test_changed_copies_are_found_and_other_images_are_not(photographs: Path) -> None:
    paths = sorted(photographs.iterdir())
    inspections = [inspect_file(path, perceptual=True) for path in paths]
    (group,) = join(near_duplicates(inspections))
    coffees = {"coffee", "coffee_low_quality", "coffee_small", "coffee_brighter"}
    assert {paths[index].stem for index in group} == coffees
    assert [[paths[i].stem for i in group] for group in exact_duplicates(inspections)] == [
        ["copy", "moon"]
    ]


def test_equal_hashes_alone_are_not_enough() -> None:
    inspections = [
        Inspection(Path(name), content_hash=name, perceptual_hash="f" * 16) for name in "ab"
    ]
    rng = np.random.default_rng(0)
    small = {Path("a"): rng.random((24, 24)), Path("b"): rng.random((24, 24))}
    assert near_duplicates(inspections, small.__getitem__) == []
    small[Path("b")] = 0.5 * small[Path("a")] + 0.2
    assert near_duplicates(inspections, small.__getitem__) == [(0, 1)]


def test_empty_files_are_no_duplicates(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    inspections = [inspect_file(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    assert exact_duplicates(inspections) == []
