from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data.folder import LabelledImage, scan_folder
from finetune.data.found_images import FoundImages
from finetune.data.groups import groups_by_pattern, groups_with_duplicates
from finetune.errors import UsageError

Painter = Callable[..., Path]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"patient\d+", ["patient1", "patient1", "patient2", None]),
        (r"patient(\d+)", ["1", "1", "2", None]),
        (r"(\w)/patient(\d+)", ["a|1", "a|1", "a|2", None]),
        (r"(x)?patient(\d+)", ["1", "1", "2", None]),
    ],
)
def test_a_pattern_names_the_groups(
    pattern: str, expected: list[str | None], paint: Painter, tmp_path: Path
) -> None:
    for name in ["patient1_1.png", "patient1_2.png", "patient2_1.png", "z.png"]:
        paint(f"r/a/{name}")
    folder = groups_by_pattern(scan_folder(tmp_path / "r"), pattern)
    assert [image.group for image in folder.images] == expected


def test_patterns_that_cannot_be_meant_are_refused(paint: Painter, tmp_path: Path) -> None:
    paint("r/a/1.png")
    folder = scan_folder(tmp_path / "r")
    with pytest.raises(UsageError, match="regular expression"):
        groups_by_pattern(folder, "(")
    with pytest.raises(UsageError, match=r"one of them is 'a/1\.png'"):
        groups_by_pattern(folder, "patient")


def test_copies_and_groups_are_joined() -> None:
    paths = [Path(str(number)) for number in range(7)]
    groups = ["a", None, None, "b", "a", None, "b"]
    ids = ["h1", "h2", "h1", "h3", "h4", "h5", "h3"]
    images = [LabelledImage(p, 0, g, id=i) for p, g, i in zip(paths, groups, ids, strict=True)]
    together = groups_with_duplicates(images)
    assert together == [0, None, 0, 3, 0, None, 3]


def test_a_column_to_group_by_is_told_from_a_pattern(paint: Painter, tmp_path: Path) -> None:
    for name in ["a/1.png", "b/2.png"]:
        paint(f"r/{name}")
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,patient\na/1.png,a,7\nb/2.png,b,8\n")
    found = FoundImages(tmp_path / "r", str(manifest), group_by="patient")
    with pytest.raises(UsageError, match=r"a column of .*finetune split .* --group-by patient"):
        _ = found.found
