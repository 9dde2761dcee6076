"""Several processes that share one verb write what one would, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.tables.reading import read_table


@pytest.mark.slow
def test_two_processes_write_one_report_about_every_image_once(
    write_probe, colour_folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_probe("shared", noise=2.0, val_fraction=0.4, test_fraction=0.25)
    given = [
        "test",
        f"--ckpt_path={checkpoint}",
        f"--data.root={colour_folder}",
        "--data.cache=off",
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
    ]
    assert main([*given, f"--runs={tmp_path / 'one'}"]) == 0
    several = [f"--runs={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *given, *several],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.count("test: accuracy") == done.stdout.count("report ") == 1
    (alone,), (shared,) = ([*(tmp_path / name).iterdir()] for name in ("one", "two"))
    one, two = (json.loads((run / "metrics.json").read_text())["test"] for run in (alone, shared))
    del one["ms_per_image"], two["ms_per_image"]
    assert two == pytest.approx(one)
    assert len(list(shared.rglob("index.html"))) == 1
    tables = [read_table(next(run.rglob("predictions.csv"))) for run in (alone, shared)]
    assert tables[0].paths == tables[1].paths
    assert len({*tables[1].paths}) == len(tables[1].paths) == 9
