import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.data.assignment import SplitSettings, assign_splits
from finetune.data.folder import ImageFolder, scan_folder
from finetune.data.manifest import (
    manifest_columns,
    read_manifest,
    unlisted_images,
    with_previous,
    write_manifest,
)
from finetune.errors import ManifestError

Painter = Callable[..., Path]


@pytest.fixture
def root(paint: Painter, tmp_path: Path) -> Path:
    for name in ["ant/1.png", "ant/2.png", "bee/1.png", 'bee, "bumble"/ü 3.png']:
        paint(f"r/{name}")
    return tmp_path / "r"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def described(folder: ImageFolder) -> list[tuple[str, str, str | None, str | None]]:
    return [(i.path.name, folder.class_names[i.label], i.split, i.group) for i in folder.images]


def test_what_is_written_is_read_back(root: Path, tmp_path: Path) -> None:
    folder = assign_splits(
        scan_folder(root), SplitSettings(val_fraction=0.4, test_fraction=0, folds=2)
    )
    images = tuple(replace(image, id=f"id of {image.path.name}") for image in folder.images)
    folder = replace(folder, images=images)
    write_manifest(tmp_path / "runs/1/split.csv", folder)
    again = read_manifest(tmp_path / "runs/1/split.csv", root)
    assert again.images == folder.images
    assert again.class_names == folder.class_names
    assert manifest_columns(tmp_path / "runs/1/split.csv") == [
        "path", "label", "split", "fold", "group", "hash"
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "runs/1").iterdir()] == ["split.csv"]


def test_paths_as_windows_writes_them_are_found(root: Path, tmp_path: Path) -> None:
    manifest = written(tmp_path / "c/labels.csv", "path,label\nant\\1.png,x\nbee\\1.png,y\n")
    found = read_manifest(manifest, root)
    assert [image.path for image in found.images] == [root / "ant/1.png", root / "bee/1.png"]


def test_what_a_manifest_does_not_list_lies_below_the_root_as_the_images_do(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = written(tmp_path / "labels.csv", "path,label\nant/1.png,x\nant/2.png,y\n")
    unlisted = unlisted_images(read_manifest(manifest, "r"))
    assert [each.path for each in unlisted] == [
        Path("r/bee/1.png"),
        Path('r/bee, "bumble"/ü 3.png'),
    ]


def test_paths_start_at_the_csv_or_at_the_root(root: Path, tmp_path: Path) -> None:
    text = "label,path,other\nx,ant/1.png,7\ny,bee/1.png,8\n"
    expected = [("1.png", "x", None, None), ("1.png", "y", None, None)]
    assert described(read_manifest(written(root / "labels.csv", text), root)) == expected
    assert described(read_manifest(written(tmp_path / "c/labels.csv", text), root)) == expected
    absolute = f"path,label\n{root}/ant/1.png,x\n"
    assert described(read_manifest(written(tmp_path / "a.csv", absolute), root)) == expected[:1]


def test_labels_splits_and_groups_are_normalised(root: Path, tmp_path: Path) -> None:
    text = (
        "\ufeffpath,label,split,patient\n"
        "ant/1.png,e\u0301te\u0301,Validation,p1\n"
        "ant/2.png,\u00e9t\u00e9,TRAIN,\n"
        "bee/1.png,b,,p1\n"
    )
    folder = read_manifest(written(tmp_path / "l.csv", text), root, group_column="patient")
    assert folder.class_names == ("b", "\u00e9t\u00e9")
    assert described(folder) == [
        ("2.png", "\u00e9t\u00e9", "train", None),
        ("1.png", "\u00e9t\u00e9", "val", "p1"),
        ("1.png", "b", None, "p1"),
    ]


def test_paths_out_of_the_root_are_refused_unless_allowed(
    root: Path, tmp_path: Path, paint: Painter
) -> None:
    paint("elsewhere/9.png")
    csv = written(tmp_path / "l.csv", "path,label\nr/ant/1.png,a\nr/../elsewhere/9.png,b\n")
    with pytest.raises(ManifestError, match=r"1 elsewhere, the first .*9\.png"):
        read_manifest(csv, root)
    assert len(read_manifest(csv, root, allow_outside=True).images) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "found an empty file"),
        ("path;label\na;b\n", "found path;label"),
        ("file,label\na,b\n", "add path"),
        ("path,label\n", "only a header"),
        ("path,label\nant/1.png,\n", "a label in line 2"),
        ("path;label\nant/1.png;x\n", "found path;label; save it with commas"),
        (f"path,label\n{'x' * 200_000},y\n", "field larger than field limit"),
        ("path,label\n,x\n", "a path in line 2"),
        ("path,label\nant/7.png,x\n", r"1 missing, the first .*7\.png"),
        ("path,label,split\nant/1.png,x,holdout\n", "found 'holdout'"),
        ("path,label,fold\nant/1.png,x,-1\n", "found '-1'"),
        ("path,label\nant/1.png,x\nant/1.png,y\n", "as 'x' and as 'y'"),
        ("path,label,group\nant/1.png,x,p\nant/1.png,x,q\n", r"'x' \(p\) and as 'x' \(q\)"),
        ("path,label,fold\nant/1.png,x,1\nant/1.png,x,2\n", r"'x' \(1\) and as 'x' \(2\)"),
        ("path,label\nant/1.png,daisy, white\n", "2 cells in line 2 .* double quotes"),
        ('path,label\nant/1.png, "daisy, white"\n', "no blank before"),
        ("path,label\nant/1.png\n", "2 cells in line 2 .* found 1"),
        ("path,label,label\nant/1.png,x,y\n", "found label twice"),
        ("path,label,split,Split\nant/1.png,x,train,test\n", "found split twice"),
        ("sep=;\npath;label\nant/1.png;x\n", "which only Excel reads"),
        (f"path,label,fold\nant/1.png,x,{'9' * 5000}\n", "Expected fold to be"),
        ('path,label\n"ant/1.png,x\n', "save it as CSV"),
        ('path,label,note\nant/1.png,x,"two\nlines"\nant/2.png,y\n', "in line 4"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(
    text: str, complaint: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=complaint):
        read_manifest(written(tmp_path / "l.csv", text), root)
    with pytest.raises(ManifestError, match="No such file"):
        read_manifest(tmp_path / "gone.csv", root)


@pytest.mark.parametrize("content", ["path,label\nü,x\n".encode("utf-16"), bytes(range(256))])
def test_other_encodings_and_other_files_are_named_in_one_printable_line(
    content: bytes, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(ManifestError, match="save it as CSV with UTF-8") as caught:
        read_manifest(tmp_path / "l.csv", root)
    message = str(caught.value)
    assert message.isprintable()
    assert message.encode("utf-8")
    assert len(message) < 300


@pytest.mark.parametrize("where", ["{} ", " {}", "{}\u00a0", "\u2003{}", "{}  "])
def test_names_are_exact_to_the_blank(where: str, root: Path, tmp_path: Path) -> None:
    """What a run writes of its split names the same classes when it is read."""
    padded = where.format("rose")
    (root / padded).mkdir()
    (root / "rose").mkdir()
    (root / "ant/1.png").rename(root / padded / "1.png")
    (root / "ant/2.png").rename(root / "rose/2.png")
    folder = assign_splits(scan_folder(root), SplitSettings(0, 0))
    write_manifest(tmp_path / "split.csv", folder)
    again = read_manifest(tmp_path / "split.csv", root)
    assert again.class_names == folder.class_names
    assert {padded, "rose"} <= {*again.class_names}
    assert again.images == folder.images


def test_columns_are_found_whatever_their_spelling_and_it_is_said(
    root: Path, tmp_path: Path
) -> None:
    spaced = written(tmp_path / "l.csv", 'Path, Label , SPLIT\nant/1.png, "a, b", test\n')
    with pytest.warns(UserWarning, match="'Label ' as label"):
        folder = read_manifest(spaced, root)
    assert described(folder) == [("1.png", "a, b", "test", None)]


def test_an_absolute_path_moves_no_other(root: Path, tmp_path: Path) -> None:
    text = f"path,label\n{root}/bee/1.png,b\nr/ant/1.png,a\n"
    assert len(read_manifest(written(tmp_path / "l.csv", text), root).images) == 2


def test_pipes_and_devices_are_refused_at_once(root: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", "/dev/zero", tmp_path):
        with pytest.raises(ManifestError, match="regular file"):
            read_manifest(path, root)


def test_a_file_listed_twice_alike_is_used_once_and_said(root: Path, tmp_path: Path) -> None:
    csv = written(tmp_path / "l.csv", "path,label\nant/1.png,x\nant/../ant/1.png,x\n")
    folder = read_manifest(csv, root)
    assert len(folder.images) == 1
    assert [unused.reason for unused in folder.unused] == ["listed twice in the manifest"]


def test_old_images_keep_sides_folds_and_groups(root: Path, tmp_path: Path, paint: Painter) -> None:
    settings = SplitSettings(val_fraction=0.3, test_fraction=0.3, folds=2)
    for number in range(10):
        paint(f"r/ant/n{number}.png")
    old = assign_splits(scan_folder(root), settings)
    write_manifest(tmp_path / "old.csv", old)
    for number in range(20):
        paint(f"r/ant/m{number}.png")
    found = with_previous(scan_folder(root), read_manifest(tmp_path / "old.csv", root))
    new = assign_splits(found, settings)
    side = {image.path: (image.split, image.fold) for image in new.images}
    assert len(side) == len(old.images) + 20
    assert all(side[image.path] == (image.split, image.fold) for image in old.images)
    ants = [image for image in new.images if image.label == 0]
    assert abs(sum(image.split == "test" for image in ants) - 0.3 * len(ants)) <= 1
