import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.commands.check import main
from finetune.errors import ImageFolderError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A healthy split folder: 6 training and 5 val images of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5)):
        for name in ("ant", "bée [1]"):
            folder = tmp_path / "r" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "r"


def test_a_healthy_folder_passes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "22 images, 2 classes" in out
    assert "bée [1]" in out
    assert out.rstrip().endswith("all is well")


def test_a_leak_fails_and_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "val/ant/copy.png").write_bytes((root / "train/ant/3.png").read_bytes())
    assert main([str(root)]) == 1
    out = capsys.readouterr().out
    assert "train/ant/3.png: in train and val: equal to val/ant/copy.png" in out
    assert "1 error" in out


def test_near_leaks_are_looked_for_when_asked(root: Path, tmp_path: Path) -> None:
    with Image.open(root / "train/ant/3.png") as image:
        image.save(root / "val/ant/again.jpg", quality=95)
    assert main([str(root)]) == 0
    assert main([str(root), "--duplicates", "near"]) == 1


def test_json_says_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train/ant/bad.jpg").write_text("<html>")
    (root / "train/ant/.hidden.png").touch()
    assert main([str(root), "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["class_names"] == ["ant", "bée [1]"]
    assert values["counts"] == {
        "train": {"ant": 7, "bée [1]": 6},
        "val": {"ant": 5, "bée [1]": 5},
    }
    assert values["formats"] == {"PNG RGB": 22}
    assert (values["errors"], values["warnings"]) == (1, 0)
    found = {finding["kind"]: finding for finding in values["findings"]}
    assert found["unreadable"]["path"] == str(root / "train/ant/bad.jpg")
    assert found["unreadable"]["problem"] == "Expected an image, found a web page (HTML)"
    assert found["unused"]["severity"] == "note"


def test_the_pixel_limit_can_be_set(root: Path) -> None:
    assert main([str(root), "--max-pixels", "2399"]) == 1
    assert main([str(root), "--max_pixels", "2400"]) == 0


def test_a_manifest_can_be_checked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text("path,label,split\ntrain/ant/0.png,a,train\nval/ant/0.png,b,val\n")
    assert main([str(root), "--manifest", str(csv), "--json"]) == 1  # train lacks class b
    values = json.loads(capsys.readouterr().out)
    assert values["counts"] == {"train": {"a": 1, "b": 0}, "val": {"a": 0, "b": 1}}
    unlisted = [f["path"] for f in values["findings"] if f["kind"] == "unused"]
    assert len(unlisted) == 20
    assert str(root / "train/ant/0.png") not in unlisted


@pytest.mark.parametrize("wrong", [["--duplicate", "near"], ["--max-pixels", "0"], []])
def test_wrong_calls_are_usage_errors(wrong: list[str], root: Path) -> None:
    with pytest.raises(UsageError):
        main([*([str(root)] if wrong else []), *wrong])


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError, match="found nothing"):
        main([str(tmp_path / "gone")])
