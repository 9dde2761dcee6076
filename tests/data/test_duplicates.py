import itertools
from collections.abc import Callable
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
    expected = [
        (one, other)
        for one, other in itertools.combinations(range(len(values)), 2)
        if (values[one] ^ values[other]).bit_count() <= 7
    ]
    assert _close_hashes([f"{value:016x}" for value in values]) == expected


def test_pictures_without_a_hash_are_left_out() -> None:
    assert _close_hashes(["", "00" * 8, "", "00" * 8]) == [(1, 3)]
    assert _close_hashes([]) == []


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


def test_changed_copies_are_found_and_other_pictures_are_not(photographs: Path) -> None:
    paths = sorted(photographs.iterdir())
    inspections = [inspect_file(path, perceptual=True) for path in paths]
    pairs = {
        frozenset((paths[one].stem, paths[other].stem))
        for one, other in near_duplicates(inspections)
    }
    coffees = ["coffee", "coffee_low_quality", "coffee_small", "coffee_brighter"]
    assert pairs == {frozenset(pair) for pair in itertools.combinations(coffees, 2)}
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
