"""Several processes that share one verb write what one would, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.tables.reading import read_table
from finetune.training.checkpoints import read_checkpoint

FIT = [
    *("fit", "--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"),
    *("--model.strategy=head-then-all", "--model.batchnorm=eval", "--trainer.max_epochs=2"),
    *("--data.batch_size=6", "--data.num_workers=0", "--data.val_fraction=0.33"),
    *("--data.test_fraction=0", "--data.augmentation=none", "--trainer.accelerator=cpu"),
]
# What each process opens, and runs forward for the cache, is counted.
COUNTING = """
import os, sys
from pathlib import Path
from finetune.cli import main
from finetune.data import inspection
from finetune.training.features import extract

opened, inspect_file = [], inspection.inspect_file
seen, forward = [], extract._forward

def noted(path, **limits):
    opened.append(path)
    return inspect_file(path, **limits)

def counted(classifier, dataset, draws, *others):
    seen.extend(draws)
    return forward(classifier, dataset, draws, *others)

inspection.inspect_file = noted
extract._forward = counted
code = main(sys.argv[1:])
Path("counts" + os.environ["RANK"]).write_text(f"{len(opened)} {len(seen)}")
sys.exit(code)
"""
# A callback of the user's, by which one of two processes fails in its second epoch.
BREAKING = """
import os, signal
import torch
from lightning.pytorch.callbacks import Callback
from finetune.errors import ImageError

class Breaking(Callback):
    def __init__(self, how: str):
        self.how = how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank != 1 or trainer.current_epoch != 1:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "interrupt":
            os.kill(os.getppid(), signal.SIGINT)
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self.how == "image":
            raise ImageError("Expected an image, found none.")
        if self.how == "loss":
            outputs["loss"].fill_(float("nan"))
"""


def launched(*command: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, **settings
    )


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_two_processes_write_one_report_about_every_image_once(
    write_probe, colour_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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
    capfd.readouterr()
    assert main([*given, *several]) == 0
    said = capfd.readouterr().out
    assert said.count("test: accuracy") == said.count("report ") == 1
    (alone,), (shared,) = ([*(tmp_path / name).iterdir()] for name in ("one", "two"))
    one, two = (json.loads((run / "metrics.json").read_text())["test"] for run in (alone, shared))
    del one["ms_per_image"], two["ms_per_image"]
    assert two == pytest.approx(one)
    assert len(list(shared.rglob("index.html"))) == 1
    tables = [read_table(next(run.rglob("predictions.csv"))) for run in (alone, shared)]
    assert tables[0].paths == tables[1].paths
    assert len({*tables[1].paths}) == len(tables[1].paths) == 9


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["off", "auto"])
def test_two_processes_of_torchrun_fit_what_one_does(
    cache: str, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    data = [f"--data.root={colour_folder}", f"--data.cache={cache}"]
    here = f"--data.cache_dir={tmp_path / 'here'}"
    assert main([*FIT, *data, here, f"--runs={tmp_path / 'one'}"]) == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    there = f"--data.cache_dir={tmp_path / 'there'}"
    given = [*FIT, *data, there, f"--runs={tmp_path / 'two'}"]
    done = launched(*torchrun, "counting.py", *given, check=True)
    assert done.stdout.count("val: accuracy") == 1
    runs = [tmp_path / name / "test_resnet-1" for name in ("one", "two")]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["latest", "test_resnet-1"]
    for name in ("best.ckpt", "last.ckpt"):
        one, two = (read_checkpoint(run / "checkpoints" / name) for run in runs)
        torch.testing.assert_close(
            two.details["val"]["logits"], one.details["val"]["logits"], atol=1e-4, rtol=1e-4
        )
        assert two.details["val"]["paths"] == one.details["val"]["paths"]
    shares = [(tmp_path / f"counts{rank}").read_text() for rank in (0, 1)]
    # Every image once, in all; without a cache the final layer that is fitted again needs it again.
    assert shares == [f"18 {36 if cache == 'off' else 18}"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "process 1 was ended by SIGKILL"),
        ("interrupt", "finetune: stopped."),
        ("memory", "give --data.batch_size 3"),
        ("image", "Expected an image"),
        ("loss", "Expected a finite loss"),
    ],
)
def test_one_process_that_fails_ends_all_with_one_message(
    how: str,
    said: str,
    colour_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(tmp_path)
    given = [*FIT, f"--data.root={colour_folder}", "--data.cache=off", "--imports=breaking"]
    broken = ["--trainer.callbacks+=breaking.Breaking", f"--trainer.callbacks.how={how}"]
    call = [*given, "--model.strategy=all", "--trainer.devices=2", *broken]
    if how == "interrupt":  # of who has started them all, which must not be who runs the tests
        done = launched("-m", "finetune", *call)
        code, error = done.returncode, done.stderr
    else:
        code, error = main(call), capfd.readouterr().err
    assert code == (130 if how == "interrupt" else 1)
    (line,) = [line for line in error.splitlines() if "finetune: " in line]
    assert said in line
    assert "Traceback" not in error
    run = tmp_path / "runs" / "test_resnet-1"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt").details["fit"]["phase"] == 0
    if how == "kill":  # of one process there is none that the callback would end
        rest = [f"--resume={run}", "--imports=breaking", "--trainer.devices=1"]
        assert main(["fit", *rest]) == 0
        assert json.loads((run / "metrics.json").read_text())["fit"]["finished"]
