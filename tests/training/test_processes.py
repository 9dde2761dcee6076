"""What only whole processes can show: SIGKILL and resuming, two processes of a distributed fit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from finetune.cli import main
from finetune.prediction import predict
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier

FIT = [
    *("--model.backbone", "test_resnet", "--model.pretrained", "false", "--model.image_size", "32"),
    *("--model.strategy", "partial:2", "--model.batchnorm", "eval", "--model.drop_rate", "0.1"),
    *("--trainer.max_epochs", "12", "--data.batch_size", "4", "--data.num_workers", "0"),
    *("--trainer.accelerator", "cpu", "--data.test_fraction", "0", "--data.augmentation", "light"),
]


def command(*arguments):
    return [sys.executable, "-m", "finetune", "fit", *arguments]


def states(run):
    names = ("best.ckpt", "last.ckpt")
    return {name: read_checkpoint(run / "checkpoints" / name).state_dict for name in names}


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def only_run(runs):
    (run,) = (path for path in runs.iterdir() if not path.is_symlink())
    return run


@pytest.fixture(scope="module")
def undisturbed(colour_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["fit", *FIT, "--data.root", str(colour_folder), "--runs", str(folder)]) == 0
    return only_run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_fit_stopped_at_any_moment_resumes_to_the_undisturbed_result(
    stop, undisturbed, colour_folder, tmp_path
):
    process = subprocess.Popen(
        command(*FIT, "--data.root", str(colour_folder), "--runs", "stopped"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )
    epoch = random.Random(os.getpid()).randint(1, 3)
    for line in process.stdout:
        if line.startswith(f"epoch {epoch}/"):
            break
    time.sleep(random.Random(epoch).uniform(0, 0.05))
    process.send_signal(stop)
    rest = process.stdout.read()
    process.stdout.close()
    code = process.wait(timeout=60)
    stopped = only_run(tmp_path / "stopped")
    if stop == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130, rest
        assert f"finetune fit --resume stopped/{stopped.name}" in rest
        assert "Traceback" not in rest
    assert main(["fit", "--resume", str(stopped)]) == 0
    expected, found = states(undisturbed), states(stopped)
    for name, state in expected.items():
        for key, value in state.items():
            assert bool((found[name][key] == value).all()), (name, key, epoch)
    one, other = (json.loads((run / "metrics.json").read_text()) for run in (undisturbed, stopped))
    assert one["val"] == other["val"]
    assert other["fit"]["finished"]


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from finetune.data.datamodule import ImageFolderDataModule
from finetune.training.classifier import ImageClassifier
from finetune.training.phases.phased_fit import PhasedFit

class Keep(Callback):
    def on_fit_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"rank{trainer.global_rank}.pt")

seed_everything(int(os.environ.get("LOCAL_RANK", 0)))  # replicas must not depend on it
data = ImageFolderDataModule(sys.argv[1], num_workers=0, cache="off", batch_size=4,
                             val_fraction=0.25, test_fraction=0.0)  # an odd number of val images
data.setup("fit")
classifier = ImageClassifier(data.class_names, "test_resnet", pretrained=False, image_size=32,
                             batchnorm="eval", lr=1e-3, backbone_lr_factor=1.0)
torch.save(classifier.state_dict(), f"start{os.environ.get('LOCAL_RANK', 0)}.pt")

def new_trainer(phase):
    return Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False,
                   enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
                   max_epochs=phase.max_epochs, callbacks=[Keep(), *phase.callbacks])

PhasedFit(classifier, data, Path("checkpoints"), new_trainer, strategy=sys.argv[2], epochs=2).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["head-then-all"])
def test_two_processes_stay_bit_equal_after_unfreezing(strategy, colour_folder, tmp_path):

    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "script.py", str(colour_folder), strategy],
        check=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    first, second, start = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("rank0.pt", "rank1.pt", "start0.pt")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = [name for name in first if not torch.equal(first[name], start[name])]
    assert "network.conv1.0.weight" in moved
    # The answers of both processes are in the file, in the order of the images.
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    val = last.details["val"]
    again = ImageClassifier.from_checkpoint(last.path)
    answers = predict(again, [colour_folder / path for path in val["paths"]], num_workers=0)
    assert len(val["labels"]) == len(val["paths"]) == 9
    torch.testing.assert_close(
        val["logits"].softmax(dim=-1), answers.probabilities, atol=1e-4, rtol=1e-3
    )
