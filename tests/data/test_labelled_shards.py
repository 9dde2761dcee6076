"""Shards and tables as labelled images: what a folder of the same images would have given."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.found_images import FoundImages, read_images
from finetune.data.image_bytes import image_bytes, image_size, is_there
from finetune.data.shard_files import folder_of, shards_at
from finetune.errors import DataError, ImageError
from finetune.spec.images import place_of, within

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def labelled(images: Iterable[Path]) -> list[Member]:
    """WebDataset's layout: ``red-03.png`` and ``red-03.cls``."""
    return [
        member
        for image in images
        for key in [f"{image.parent.name}-{image.stem}"]
        for member in ((f"{key}.png", image.read_bytes()), (f"{key}.cls", key[:-3].encode()))
    ]


def write_table(path: Path, images: list[Path], **columns: object) -> Path:
    content = {"image": [{"bytes": image.read_bytes(), "path": image.name} for image in images]}
    columns = columns or {"label": [image.parent.name for image in images]}
    pyarrow.parquet.write_table(pyarrow.table({**content, **columns}), path, row_group_size=5)
    return path


@pytest.fixture
def images(colour_folder: Path) -> list[Path]:
    return sorted(colour_folder.rglob("*.png"))


@pytest.fixture
def shards(images: list[Path], tmp_path: Path) -> Path:
    """Three of them, of images that are not in order."""
    for number in range(3):
        write_tar(tmp_path / f"shards/{number:04d}.tar", labelled(images[number::3]))
    return tmp_path / "shards"


def labels(root: Path, **options: object) -> dict[str, str]:
    """The class of each content."""
    found = FoundImages(root, remember=False, **options).readable()
    return {image.id: found.class_names[image.label] for image in found.images}


@pytest.mark.parametrize("spelled", ["", "/{0000..0002}.tar", "/*.tar"])
def test_shards_are_the_folder_that_they_were_made_of(
    shards: Path, colour_folder: Path, spelled: str
) -> None:
    expected = labels(colour_folder)
    assert len(expected) == 36
    assert labels(Path(f"{shards}{spelled}")) == expected


def test_a_table_is_the_folder_that_it_was_made_of(
    images: list[Path], colour_folder: Path, tmp_path: Path
) -> None:
    assert labels(write_table(tmp_path / "a.parquet", images)) == labels(colour_folder)
    paths = [str(image.relative_to(colour_folder.parent)) for image in images]
    names = {"path": paths, "label": [image.parent.name for image in images]}
    table = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table(names), table)
    (tmp_path / colour_folder.name).symlink_to(colour_folder)
    assert labels(table) == labels(colour_folder)


def test_numbers_of_hugging_face_have_their_names(
    images: list[Path], colour_folder: Path, tmp_path: Path
) -> None:
    names = ["red", "green", "blue"]
    table = write_table(
        tmp_path / "a.parquet", images, label=[names.index(image.parent.name) for image in images]
    )
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    known = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    whole = pyarrow.parquet.read_table(table).replace_schema_metadata(known)
    pyarrow.parquet.write_table(whole, table)
    assert labels(table) == labels(colour_folder)


def test_an_object_beside_an_image_says_what_a_manifest_says(images: list[Path]) -> None:
    said = [{"label": "a", "split": "train", "group": "p1"}, {"label": 3, "split": "test"}]
    members = [
        member
        for number, cells in enumerate(said)
        for member in (
            (f"{number}.v2.png", images[number].read_bytes()),
            (f"{number}.json", json.dumps(cells).encode()),
        )
    ]
    found = read_images(write_tar(Path("x.tar"), members), None)
    assert found.class_names == ("3", "a")
    kept = [(image.path.name, image.split, image.group) for image in found.images]
    assert kept == [("x.tar::0.v2.png", "train", "p1"), ("x.tar::1.v2.png", "test", None)]


def test_several_labels_and_numbers(images: list[Path]) -> None:
    sets = write_table(Path("a.parquet"), images[:3], label=[["round", "red"], ["red"], []])
    found = read_images(sets, None, task="multilabel")
    assert found.class_names == ("red", "round")
    assert [image.label for image in found.images] == [(1, 1), (1, 0), (0, 0)]
    marks = write_table(Path("b.parquet"), images[:2], tall=[1, 0], wide=[None, 1])
    found = read_images(marks, None, label_columns=["tall", "wide"])
    assert {image.label for image in found.images} == {(1, -1), (0, 1)}
    ages = write_table(Path("c.parquet"), images[:2], age=[31.5, 7.0])
    found = read_images(ages, None, task="regression", label_columns=["age"])
    assert {image.label for image in found.images} == {31.5, 7.0}


@pytest.mark.parametrize("write", [write_table, None])
def test_the_columns_of_a_fit_are_known_to_what_follows_it(
    images: list[Path], write: object
) -> None:
    marks = {"red": [index % 2 for index in range(12)], "cool": [1 - n % 2 for n in range(12)]}

    def shard(name: str, **more: list[str]) -> Path:
        if write is not None:
            return write_table(Path(f"{name}.parquet"), images[:12], **marks, **more)
        lines = [
            dict(zip((*marks, *more), cells, strict=True))
            for cells in zip(*marks.values(), *more.values(), strict=True)
        ]
        return write_tar(
            Path(f"{name}.tar"),
            [
                m
                for n, image in enumerate(images[:12])
                for m in (
                    (f"{n}.png", image.read_bytes()),
                    (f"{n}.json", json.dumps(lines[n]).encode()),
                )
            ],
        )

    fitted = ImageFolderDataModule(shard("a"), label_columns=[*marks], cache="off")
    record = fitted.split_record
    later = ImageFolderDataModule(shard("b"), task="multilabel", cache="off")
    later.follow(record)
    for side in ("train", "val", "test"):
        assert [i.label for i in later.images(side)] == [i.label for i in fitted.images(side)]  # type: ignore[arg-type]
    # Labels in the one column of that name are those that count.
    other = ImageFolderDataModule(shard("c", label=["x|y"] * 12), task="multilabel", cache="off")
    other.follow(record)
    assert other.class_names == ("x", "y")


def test_splits_are_taken_from_names_as_from_folders(images: list[Path]) -> None:
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        write_table(Path(f"{name}.parquet"), images[: 20 if "train" in name else 30])
    assert read_images(Path("*.parquet"), None).splits == ("train", "val")
    assert read_images(Path("validation-00000-of-00001.parquet"), None).splits == ()


def test_what_is_not_used_is_told(images: list[Path]) -> None:
    further = [("a.txt", b"a red thing"), ("../b.png", b""), ("red-00.png", b"again")]
    shard = write_tar(Path("x.tar"), [*labelled(images[24:26]), *further])
    notes = {each.path.name: each.reason for each in read_images(shard, None).unused}
    assert list(notes) == ["x.tar::a.txt", "b.png", "x.tar::red-00.png"]
    assert notes["x.tar::red-00.png"].startswith("twice")


def test_the_rest_of_a_damaged_shard_is_an_error_or_left_out(images: list[Path]) -> None:
    shard = write_tar(Path("x.tar"), labelled(images))
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2 // 512 * 512
    content[middle : middle + 2**14] = b"x" * 2**14
    shard.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.tar \(is damaged after \d+ files"):
        FoundImages(shard, remember=False).readable()
    kept = FoundImages(shard, remember=False, on_bad_image="skip").readable()
    assert 10 < len(kept.images) < 20


def test_manifests_name_images_in_shards(shards: Path, images: list[Path]) -> None:
    from finetune.data.manifest import read_manifest, write_manifest

    found = read_images(shards, None)
    write_manifest("all.csv", found)
    again = read_manifest("all.csv", shards)
    assert [(i.path, i.label) for i in again.images] == [(i.path, i.label) for i in found.images]


BAD = {
    "no label": ("x.tar", [("a.png", b"")], r"a\.cls or label in a\.json .* found neither"),
    "no object": ("x.tar", [("a.png", b""), ("a.json", b"[1]")], r"\{\"label\": \"cat\"\} in x"),
    "no text": ("x.tar", [("a.png", b""), ("a.cls", b"\xff")], r"text in x\.tar::a\.cls"),
    "no split": ("x.tar", [("a.png", b""), ("a.json", b'{"label":1,"split":"x"}')], "train, val"),
    "no image": ("x.tar", [("a.txt", b"")], r"Expected images in x\.tar, found none"),
    "a mixture": ("*", [("a.png", b"")], "either shards or images"),
    "nothing": ("y{0..3}.tar", [], r"found nothing at y0\.tar"),
    "packed": ("x.tar.gz", [], "run gunzip"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learnt_from_is_one_line(case: str) -> None:
    root, members, message = BAD[case]
    write_tar(Path("x.tar"), members)
    Path("beside.png").touch()
    if root.endswith(".gz"):
        Path(root).touch()
    with pytest.raises(DataError, match=message) as raised:
        read_images(Path(root), None)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([b"x"], "text or whole numbers in the column label .* found binary"),
        ([0.5], "found double; .*--data.task regression"),
        ([None], r"Expected a label in row 0 of a\.parquet, found none"),
    ],
)
def test_a_column_of_another_type_is_one_line(
    images: list[Path], label: list[object], message: str
) -> None:
    table = write_table(Path("a.parquet"), images[:1], label=label)
    with pytest.raises(DataError, match=message):
        read_images(table, None)


def test_class_folders_come_before_a_shard_beside_them(colour_folder: Path) -> None:
    assert not shards_at(colour_folder)
    for name in ("red", "blue"):
        Path("mine", name).mkdir(parents=True)
        Path("mine", name, "a.png").touch()
    Path("mine/backup.tar").touch()
    assert not shards_at("mine")
    assert [each.reason for each in read_images(Path("mine"), None).unused] == [
        "outside any class folder"
    ]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=8))
def test_members_are_read_at_their_places(tmp_path_factory, contents: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("places")
    # Names over 100 bytes have headers of several blocks.
    names = [f"{'long/' * 40 * (n % 2)}{n}.png" for n in range(len(contents))]
    shard = write_tar(folder / "x.TAR", zip(names, contents, strict=True))
    for name, content in zip(names, contents, strict=True):
        assert image_bytes(within(shard, name)) == content
        assert image_size(within(shard, name)) == len(content)
    assert not is_there(within(shard, "none.png"))
    assert place_of(within(shard, names[0])) == (shard, names[0])
    with pytest.raises(FileNotFoundError):
        image_bytes(within(shard, "none.png"))


def test_a_shard_that_was_written_again_is_read_anew(images: list[Path]) -> None:
    shard = write_tar(Path("x.tar"), [("a.png", b"1")])
    assert image_bytes("x.tar::a.png") == b"1"
    write_tar(shard, [("0.txt", b"before"), ("a.png", b"22")])
    assert image_bytes("x.tar::a.png") == b"22"


def test_rows_are_read_at_their_places(images: list[Path]) -> None:
    table = write_table(Path("a.parquet"), images)
    for row in (35, 0, 4, 5, 17):
        assert image_bytes(within(table, row)) == images[row].read_bytes()
    assert is_there(within(table, 35))
    assert not is_there(within(table, 36))
    with pytest.raises(OSError, match="36"):
        image_bytes(within(table, 36))


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("gone/x.tar", "gone"),
        ("x.tar", "."),
        ("gone/{00..12}/{0..3}.tar", "gone"),
        ("a/b/**/*.parquet", "a/b"),
        ("photos", "photos"),
    ],
)
def test_paths_start_from_the_folder_of_the_shards(root: str, folder: str) -> None:
    assert folder_of(root) == Path(folder)
