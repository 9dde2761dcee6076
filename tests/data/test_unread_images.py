"""What somebody takes for images of the folder and no verb reads is told, never passed over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.data.folder import scan_folder
from finetune.data.health import check_folder
from finetune.data.image_blocks import image_blocks
from finetune.data.image_formats import guessed_kind, readable_formats
from finetune.data.inspection import inspect_files
from finetune.data.walk import images_below, readable_suffixes
from finetune.errors import ImageFolderError

Painter = Callable[..., Path]
OF_A_PHONE = b"\0\0\0\x18ftypheic" + bytes(16)
needs_no_heif = pytest.mark.skipif(
    ".heic" in readable_suffixes(), reason="pillow-heif is installed, so these are read"
)


@pytest.fixture
def folder(paint: Painter, tmp_path: Path) -> Path:
    root = tmp_path / "r"
    for name in ["cat/1.jpg", "dog/1.jpg"]:
        paint(f"r/{name}")
    for name in ["dog/2.HEIC", "dog/3.heic", "dog/4.NEF", "dog/notes.txt"]:
        (root / name).write_bytes(OF_A_PHONE)
    return root


@needs_no_heif
def test_images_of_other_formats_are_warnings_and_other_files_notes(folder: Path) -> None:
    scanned = scan_folder(folder)
    seen = inspect_files([image.path for image in scanned.images], root=folder, remember=False)
    found = check_folder(scanned, seen)
    unused = {each.path.name: each.severity for each in found if each.kind == "unused"}
    assert unused == {
        "2.HEIC": "warning",
        "3.heic": "warning",
        "4.NEF": "warning",
        "notes.txt": "note",
    }


def test_a_folder_beside_those_of_the_split_is_a_warning(paint: Painter, tmp_path: Path) -> None:
    for name in ["train/cat/1.jpg", "train/dog/1.jpg", "tests/cat/1.jpg"]:
        paint(f"r/{name}")
    (unused,) = scan_folder(tmp_path / "r").unused
    assert unused.path.name == "tests"
    assert unused.expected


@needs_no_heif
@pytest.mark.parametrize("listed", [images_below, lambda root: [*image_blocks([root], 9, int)]])
def test_who_lists_a_folder_is_told_how_many_and_why(
    folder: Path, listed: Callable[[str], object]
) -> None:
    with pytest.warns(UserWarning, match="not used") as told:
        listed(str(folder))
    assert [str(each.message).removeprefix(f"{folder}: ") for each in told] == [
        "2 not used: .heic needs the package pillow-heif",
        "1 not used: .nef is not read; convert it to PNG, TIFF or JPEG",
    ]


@needs_no_heif
def test_a_folder_of_nothing_else_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "r" / "dog").mkdir(parents=True)
    (tmp_path / "r" / "dog" / "1.heic").write_bytes(OF_A_PHONE)
    with pytest.raises(ImageFolderError, match=r"found none, 1 not used: .*pillow-heif"):
        scan_folder(tmp_path / "r")


@pytest.mark.parametrize(
    ("brand", "form"), [(b"heic", "HEIF"), (b"mif1", "HEIF"), (b"avif", "AVIF")]
)
def test_a_file_of_such_a_format_is_called_by_its_name(brand: bytes, form: str) -> None:
    kind = guessed_kind(b"\0\0\0\x18ftyp" + brand + bytes(16))
    assert form in kind
    assert ("damaged" in kind) == (form in readable_formats())


@needs_no_heif
def test_a_fit_says_that_such_images_are_not_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["fit", "--data.root", str(folder), "--model.backbone", "test_resnet"]
    call += ["--model.pretrained", "false", "--trainer.max_epochs", "1"]
    assert main([*call, "--model.image_size", "32", "--trainer.accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "! 2 not used: .heic needs the package pillow-heif" in shown
    assert ".txt" not in shown
