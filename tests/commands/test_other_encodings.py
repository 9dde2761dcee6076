"""Names that are no UTF-8, as Linux allows them and old spreadsheets write them, end no verb."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import main

LATIN = os.fsdecode("grün".encode("latin-1"))
WriteCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("latin") / "images"
    shutil.copytree(colour_folder, root)
    try:
        (root / "green").rename(root / LATIN)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    (root / "red" / "00.png").rename(root / "red" / f"{LATIN}.png")
    return root


def test_a_whole_way_with_such_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(folder)
    assert main(["check", root]) == 0
    assert "is no UTF-8" in capsys.readouterr().out
    fit = ["fit", "--data.root", root, "--model.backbone", "test_resnet", "--model.strategy=head"]
    fit += ["--model.pretrained=false", "--model.image_size=32", "--trainer.accelerator=cpu"]
    best = "runs/a-1/checkpoints/best.ckpt"
    failed = []
    suspects = ["--suspects", "suspects.csv"]
    for call in (
        [*fit, "--name", "a"],
        ["test", "--ckpt_path", "runs/a-1", "--data.root", root],
        ["predict", best, root, "--output", "a.csv"],
        ["predict", best, root, "--output", "a.jsonl"],
        ["predict", best, root, "--output", "a.parquet"],
        ["report", "runs/a-1", "--data.root", root, *suspects],
        ["compare", "runs/a-1", "runs/a-1/report/predictions.csv"],
        ["split", root, "--output", "split.csv"],
        [*fit, "--name", "b", "--data.manifest", "split.csv"],
        ["ensemble", "runs/a-1", "runs/b-1", "--data.root", root, "--output=e.ckpt"],
        ["calibrate", best, "--data.root", root, "--output", "c.ckpt"],
        ["explain", best, f"{root}/red/{LATIN}.png"],
        ["embed", best, root, "--output", "f.npz"],
        ["similar", best, f"{root}/red/{LATIN}.png", "--in", root],
    ):
        if main(call) != 0:
            failed.append((call[:3], capsys.readouterr().err))
    assert not failed
