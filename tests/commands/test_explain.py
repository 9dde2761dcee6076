"""``finetune explain`` from the shell's side."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from finetune.cli import main


def test_a_sheet_with_the_predicted_and_a_named_class(
    write_probe: Callable[..., Path],
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = write_probe("explained", size=64)
    images = sorted(colour_folder.rglob("*.png"))[:2]
    with Image.open(images[0]) as image:
        width, height = image.size
    output = tmp_path / "explained.png"
    arguments = [str(checkpoint), *map(str, images), "--output", str(output)]
    assert main(["explain", *arguments, "--class", "red", "--class", "blue"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.search(r"red \d+\.\d %", lines[0])
    with Image.open(output) as sheet:
        assert sheet.height >= 2 * height
        assert sheet.width >= 3 * width


def test_wrong_calls_say_what_to_do(
    write_probe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(write_probe("explained", size=64))
    image = tmp_path / "x.png"
    Image.new("RGB", (80, 80)).save(image)
    assert main(["explain", checkpoint, str(image), "--output", "explained.txt"]) == 2
    assert main(["explain", checkpoint, str(image), "--output", "no/such/folder.png"]) == 2
    wrong_class = ["--output", str(tmp_path / "e.png"), "--class", "grey"]
    assert main(["explain", checkpoint, str(image), *wrong_class]) == 2
    assert "found 'grey'" in capsys.readouterr().err
    Image.new("RGB", (800, 800)).save(image)  # ten bytes a pixel
    assert (
        main(["explain", checkpoint, str(image), *wrong_class[:2], "--max-decoding-mb", "5"]) == 1
    )
    assert "at most 5 MiB" in capsys.readouterr().err
    assert not (tmp_path / "e.png").exists()
