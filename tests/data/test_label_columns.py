"""One column a label in a manifest, and images that lie in several class folders."""

import shutil
from pathlib import Path

import pytest

from finetune.commands.check import check
from finetune.commands.split import split
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.manifest import read_manifest
from finetune.errors import ImageFolderError, ManifestError, UsageError
from finetune.spec.images import ImageRef
from finetune.spec.splits import SplitRecord, Standing

COLUMNS = ("red", "round", "small")


def manifest(folder: Path, root: Path, text: str) -> Path:
    """Lines of cells behind the paths of as many images."""
    images = sorted(root.rglob("*.png"))
    lines = text.splitlines()
    paths = [str(path) for path in images[: len(lines) - 1]]
    written = folder / "m.csv"
    rows = [f"{path},{cells}" for path, cells in zip(paths, lines[1:], strict=True)]
    written.write_text("\n".join([f"path,{lines[0]}", *rows]) + "\n")
    return written


def test_columns_are_the_cells_that_they_stand_for(tmp_path: Path, colour_folder: Path) -> None:
    path = manifest(
        tmp_path, colour_folder, "small,note,red,round\n0,x,1,1\n,y, 1 ,0\n?,z,0,0\n1,,0,1"
    )
    folder = read_manifest(path, colour_folder, label_columns=COLUMNS)
    assert folder.class_names == ("red", "round", "small")
    found = {image.path.name: image.label for image in folder.images}
    assert found == {
        "00.png": (1, 1, 0),
        "01.png": (1, 0, -1),
        "02.png": (0, 0, -1),
        "03.png": (0, 1, 1),
    }
    again = manifest(tmp_path, colour_folder, "label\nred|round\nred|?small\n?small\nround|small")
    assert read_manifest(again, colour_folder).images == folder.images


def test_one_label_a_row_is_several_labels_all_the_same(
    tmp_path: Path, colour_folder: Path
) -> None:
    path = manifest(tmp_path, colour_folder, "red,round\n1,0\n0,1\n0,0\n1,0")
    data = ImageFolderDataModule(
        colour_folder, manifest=path, label_columns=["red", "round"], cache="off", val_fraction=0
    )
    assert data.task_name == "multilabel"
    assert data.folder.class_names == ("red", "round")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("red,round\n1,2", ("red", "round"), r"Expected 0, 1 or nothing in the label column 'ro"),
        ("red,round\n1,0", ("red", "square"), "square"),
        ("red,a|b\n1,0", ("red", "a|b"), r"label columns that are there once.*found 'a\|b'"),
        ("red,fold\n1,0", ("red", "fold"), "found 'fold'"),
        ("red,round\n1,0", ("red", "red"), "found 'red'"),
        ("red,round\n,\n1,0", ("red", "round"), "found only labels with"),
    ],
)
def test_what_is_no_column_of_labels_is_refused(
    tmp_path: Path, colour_folder: Path, text: str, columns: tuple[str, ...], message: str
) -> None:
    path = manifest(tmp_path, colour_folder, text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path, colour_folder, label_columns=columns)


def test_a_label_that_nobody_has_does_not_vanish(tmp_path: Path, colour_folder: Path) -> None:
    path = manifest(tmp_path, colour_folder, "red,round,small\n1,0,0\n1,1,0\n0,1,0\n0,1,0")
    data = ImageFolderDataModule(colour_folder, manifest=path, label_columns=COLUMNS, cache="off")
    with pytest.raises(ManifestError, match="found 'small' only as not known"):
        _ = data.class_names
    for settings in ({"manifest": None}, {"manifest": path, "task": "multiclass"}):
        with pytest.raises(UsageError, match="label_columns"):
            ImageFolderDataModule(colour_folder, label_columns=COLUMNS, **settings)  # type: ignore[arg-type]


def test_class_folders_do_not_stand_in_for_the_manifest_of_a_fit(colour_folder: Path) -> None:
    ref = ImageRef("0" * 32, "elsewhere/a.png", (1, 0, 0))
    names = ("blue", "green", "red")
    record = SplitRecord({}, names, (ref,), (Standing("train"),), listed=True)
    data = ImageFolderDataModule(colour_folder, task="multilabel", cache="off")
    data.follow(record)
    with pytest.raises(ImageFolderError, match="was by manifest"):
        _ = data.folder


@pytest.fixture
def overlapping(tmp_path: Path, colour_folder: Path) -> Path:
    """Class folders, of which two hold the same image twice and three times."""
    root = tmp_path / "folders"
    shutil.copytree(colour_folder, root)
    shutil.copy(root / "red" / "00.png", root / "blue" / "also.png")
    shutil.copy(root / "red" / "01.png", root / "green" / "also.png")
    shutil.copy(root / "red" / "01.png", root / "blue" / "again.png")
    return root


def test_an_image_in_several_class_folders_has_their_labels_where_asked_for(
    overlapping: Path,
) -> None:
    data = ImageFolderDataModule(overlapping, task="multilabel", cache="off")
    assert data.task_name == "multilabel"
    by_id = {image.id: image for image in data.folder.images}
    assert len(by_id) == len(data.folder.images) == 36
    assert sorted(sum(image.label) for image in by_id.values())[-2:] == [2, 3]
    assert sum("with its labels" in each.reason for each in data.folder.unused) == 3
    assert not [each for each in data.findings if each.severity == "error"]


def test_otherwise_it_is_a_contradiction_and_the_note_says_how_to_ask(overlapping: Path) -> None:
    found = [each for each in check(overlapping, quiet=True) if each.kind == "contradiction"]
    assert len(found) == 2
    assert "--data.task multilabel" in found[0].remedy
    asked = check(overlapping, task="multilabel", quiet=True)
    assert not [each for each in asked if each.kind == "contradiction"]
    folder = split(overlapping, task="multilabel", quiet=True)
    assert folder.has_label_sets
    assert len(folder.images) == 36


def test_a_split_by_columns_goes_on_from_its_own_cells(tmp_path: Path, colour_folder: Path) -> None:
    path = manifest(tmp_path, colour_folder, "red,round\n" + "1,0\n0,1\n0,0\n" * 8)
    first, columns = tmp_path / "split.csv", ["red", "round"]
    made = split(colour_folder, manifest=path, label_columns=columns, output=first, quiet=True)
    again = split(colour_folder, manifest=path, label_columns=columns, previous=first, quiet=True)
    assert [each.split for each in again.images] == [each.split for each in made.images]
