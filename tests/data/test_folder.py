import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.folder import LabelledImage, scan_folder
from finetune.data.health import check_folder, readable_folder
from finetune.data.inspection import inspect_files
from finetune.errors import ImageError, ImageFolderError
from finetune.prediction import find_images

Painter = Callable[..., Path]


def reasons(root: Path) -> dict[str, str]:
    unused = scan_folder(root).unused
    result = {
        unused_file.path.relative_to(root).as_posix(): unused_file.reason for unused_file in unused
    }
    assert len(result) == len(unused), "something is listed twice"
    return result


def test_first_level_folders_are_the_classes_and_deeper_ones_belong_to_them(
    paint: Painter, tmp_path: Path
) -> None:
    for name in ["r/dog/sub/a.jpg", "r/cat/sub/deep/b.JPG", "r/cat/10.PNG", "r/cat/9.png"]:
        paint(name)
    folder = scan_folder(tmp_path / "r")
    assert folder.class_names == ("cat", "dog")
    assert not folder.is_split
    assert [(i.path.relative_to(tmp_path / "r").as_posix(), i.label) for i in folder.images] == [
        ("cat/10.PNG", 0),
        ("cat/9.png", 0),
        ("cat/sub/deep/b.JPG", 0),
        ("dog/sub/a.jpg", 1),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_share_one_vocabulary(paint: Painter, tmp_path: Path, val: str) -> None:
    for name in [
        "train/a/1.jpg",
        "train/b/1.jpg",
        "train/c/1.jpg",
        f"{val}/c/2.jpg",
        "test/b/3.jpg",
    ]:
        paint(f"r/{name}")
    folder = scan_folder(tmp_path / "r")
    assert folder.splits == ("train", "val", "test")
    assert folder.class_names == ("a", "b", "c")
    assert folder.of_split("val") == (
        LabelledImage(tmp_path / "r" / val / "c" / "2.jpg", 2, split="val"),
    )
    assert folder.classes_of("test") == ("b",)


def test_a_class_may_be_called_like_a_split(paint: Painter, tmp_path: Path) -> None:
    for name in ["r/valid/1.jpg", "r/invalid/1.jpg"]:
        paint(name)
    assert scan_folder(tmp_path / "r").class_names == ("invalid", "valid")


def test_every_file_left_out_is_listed_once_with_its_reason(paint: Painter, tmp_path: Path) -> None:
    root = tmp_path / "r"
    used, *left_out = ["train/cat/1.jpg", "train/.ipynb_checkpoints/1.jpg", "train/root.jpg"]
    left_out += ["top.jpg", "train/cat/._1.jpg", "train/__MACOSX/x.jpg", "extra/1.jpg"]
    for name in [used, *left_out]:
        paint(f"r/{name}")
    for name in ["Thumbs.db", "train/desktop.ini", "train/cat/notes.txt", "train/cat/.DS_Store"]:
        (root / name).write_bytes(b"x")
    (root / "train/cat/gone.jpg").symlink_to(root / "nowhere.jpg")
    found = reasons(root)
    assert found == {
        "Thumbs.db": "written by the operating system",
        "top.jpg": "outside any class folder",
        "extra": "beside the split folders, so in no split",
        "train/.ipynb_checkpoints": "hidden",
        "train/__MACOSX": "written by the operating system",
        "train/desktop.ini": "written by the operating system",
        "train/root.jpg": "outside any class folder of train",
        "train/cat/.DS_Store": "hidden",
        "train/cat/._1.jpg": "AppleDouble file: macOS's attributes of another file",
        "train/cat/notes.txt": "not an image by its ending (.txt)",
        "train/cat/gone.jpg": "a broken link, or not a regular file",
    }


def test_links_are_followed_once_and_loops_survived(paint: Painter, tmp_path: Path) -> None:
    paint("r/cat/1.jpg")
    paint("elsewhere/2.jpg")
    root = tmp_path / "r"
    (root / "cat/loop").symlink_to(root, target_is_directory=True)
    (root / "a_link_to_cat").symlink_to(root / "cat", target_is_directory=True)
    (root / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "cat/file_link.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    (root / "cat/to_itself.jpg").symlink_to("to_itself.jpg")
    folder = scan_folder(root)
    assert [i.path.relative_to(root).as_posix() for i in folder.images] == [
        "cat/1.jpg",
        "cat/file_link.jpg",
        "dog/2.jpg",
    ]
    assert set(reasons(root)) == {"cat/loop", "a_link_to_cat", "cat/to_itself.jpg"}


def test_class_names_are_compared_in_composed_form(paint: Painter, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    paint(f"r/train/{composed}/1.jpg")
    paint(f"r/train/日本 語/{'x' * 200}.jpg")
    paint(f"r/val/{decomposed}/2.jpg")
    folder = scan_folder(tmp_path / "r")
    assert folder.class_names == (composed, "日本 語")
    assert [image.label for image in folder.of_split("val")] == [0]
    assert folder.with_class_names(["other", decomposed, "日本 語"]).of_split("val")[0].label == 1


def test_empty_classes_are_named_and_take_no_index(paint: Painter, tmp_path: Path) -> None:
    paint("r/b/1.jpg")
    (tmp_path / "r/a").mkdir()
    folder = scan_folder(tmp_path / "r")
    assert folder.class_names == ("b",)
    assert folder.empty_classes == ("a",)


def test_another_vocabulary_keeps_its_indexes_and_names_what_it_lacks(
    paint: Painter, tmp_path: Path
) -> None:
    paint("r/ant/1.jpg")
    paint("r/bee/1.jpg")
    folder = scan_folder(tmp_path / "r")
    moved = folder.with_class_names(("bee", "wasp", "ant"))
    assert [(image.path.parent.name, image.label) for image in moved.images] == [
        ("ant", 2),
        ("bee", 0),
    ]
    with pytest.raises(ImageFolderError, match="found also 'bee'"):
        folder.with_class_names(("ant", "wasp"))


def test_unusable_folders_say_what_is_expected(paint: Painter, tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError, match="found nothing"):
        scan_folder(tmp_path / "missing")
    flat = paint("flat/1.jpg")
    with pytest.raises(ImageFolderError, match="found a file"):
        scan_folder(flat)
    with pytest.raises(ImageFolderError, match="1 files outside any class folder"):
        scan_folder(flat.parent)
    paint("two/train/a/1.jpg")
    paint("two/val/a/1.jpg")
    paint("two/valid/a/1.jpg")
    with pytest.raises(ImageFolderError, match="one folder for the split val"):
        scan_folder(tmp_path / "two")


def test_a_class_called_train_beside_others_is_a_class(paint: Painter, tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        paint(f"r/{name}/1.jpg")
    folder = scan_folder(tmp_path / "r")
    assert folder.class_names == ("bus", "car", "train")
    assert not folder.is_split
    paint("r/train/bus/2.jpg")  # now it has class folders
    assert scan_folder(tmp_path / "r").class_names == ("bus",)


@pytest.fixture
def hidden_folder(paint: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes, one of which may not be listed (also by a user who may do everything)."""
    for name in ("ant", "bee", "fly"):
        for number in range(5):
            paint(f"r/{name}/{number}.png")
    closed, scandir = str(tmp_path / "r" / "bee"), os.scandir

    def refusing(path: str) -> Any:
        if str(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return tmp_path / "r"


def test_a_class_folder_that_may_not_be_listed_does_not_vanish(hidden_folder: Path) -> None:
    folder = scan_folder(hidden_folder)
    assert folder.empty_classes == ()
    inspections = inspect_files([i.path for i in folder.images], root=hidden_folder, remember=False)
    (finding,) = [f for f in check_folder(folder, inspections) if f.severity == "error"]
    assert finding.path == hidden_folder / "bee"
    assert "Permission denied" in finding.problem
    with pytest.raises(ImageError, match=r"bee \(cannot be listed: Permission denied"):
        readable_folder(folder, inspections, on_bad_image="error")
    assert readable_folder(folder, inspections, on_bad_image="skip").class_names == ("ant", "fly")
    with pytest.raises(ImageFolderError, match="bee, which cannot be listed"):
        find_images(hidden_folder)


def test_what_a_fit_finds_predict_finds(paint: Painter, tmp_path: Path) -> None:
    paint("r/ant/1.png")
    paint("elsewhere/2.png")
    paint("r/ant/deep/3.png")
    (tmp_path / "r" / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "r" / "bee" / "loop").symlink_to(tmp_path / "r", target_is_directory=True)
    found = find_images(tmp_path / "r")
    assert sorted(found) == sorted(i.path for i in scan_folder(tmp_path / "r").images)
    assert len(found) == 3


def test_the_order_does_not_depend_on_the_disk(
    paint: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        paint(f"r/c{number % 2}/{number}.png")
    expected = scan_folder(tmp_path / "r").images

    class Backwards:
        def __init__(self, path: str) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Backwards)
    assert scan_folder(tmp_path / "r").images == expected
