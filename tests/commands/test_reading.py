"""A fit opens each image file as seldom as it can: once to inspect it, once to decode it."""

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.cli import main

OPENED: Counter[str] = Counter()
WATCHED: list[str] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and WATCHED and str(arguments[0]).startswith(WATCHED[0]):
        OPENED[str(arguments[0])] += 1


sys.addaudithook(_hear)  # stays for good, and hears nothing unless something is watched


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_fit_reads_no_image_more_than_twice(
    cache: str, colour_folder: Path, tmp_path: Path
) -> None:
    call = ["fit", f"--data.root={colour_folder}", "--model.backbone=test_resnet"]
    call += ["--model.pretrained=false", "--model.image_size=32", "--model.strategy=head"]
    call += ["--trainer.accelerator=cpu", f"--data.cache={cache}"]
    call += [f"--data.cache_dir={tmp_path / 'cache'}"]
    WATCHED.append(str(colour_folder))
    OPENED.clear()
    try:
        assert main(call) == 0
        first = {path: count for path, count in OPENED.items() if path.endswith(".png")}
        OPENED.clear()
        assert main(call) == 0
        second = {path: count for path, count in OPENED.items() if path.endswith(".png")}
    finally:
        WATCHED.clear()
    assert len(first) == 36
    assert max(first.values()) <= 2
    assert max(second.values(), default=0) <= 1


def test_every_verb_that_reads_images_bounds_the_memory_of_decoding(
    colour_folder: Path, tmp_path: Path, write_probe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    shutil.copytree(colour_folder, root)
    large = root / "red" / "large.png"  # 1.6 MB while it is decoded
    Image.new("RGB", (400, 400)).save(large)
    checkpoint = write_probe("bounded")
    data = [f"--data.root={root}", "--data.num_workers=0", f"--data.cache_dir={tmp_path}"]
    fit = ["fit", *data, "--model.backbone=test_resnet", "--model.pretrained=false"]
    calls = [
        (["check", str(root), f"--cache-dir={tmp_path}"], "--max-decoding-mb"),
        (["predict", str(checkpoint), str(large)], "--max-decoding-mb"),
        ([*fit, "--model.image_size=32", "--model.strategy=head"], "--data.max_decoding_mb"),
        (["validate", f"--ckpt_path={checkpoint}", *data], "--data.max_decoding_mb"),
        (["calibrate", str(checkpoint), *data, "--output=c.ckpt"], "--data.max_decoding_mb"),
    ]
    for call, option in calls:
        for megabytes, code in (("1", 1), ("2", 0)):
            assert main([*call, option, megabytes]) == code, call
            told = capsys.readouterr()
            assert ("at most 1 MiB" in " ".join(told)) == (code == 1), (call, told)
