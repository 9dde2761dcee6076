"""A fit opens each image file as seldom as it can: once to inspect it, once to decode it."""

import sys
from collections import Counter
from pathlib import Path

import pytest

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
