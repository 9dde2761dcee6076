"""One figure has one value: whatever tells it, of whatever answers, however sure they are."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import ImageClassifier, predict
from finetune.cli import main
from finetune.combining.ensemble import Ensemble
from finetune.data.datamodule import ImageFolderDataModule
from finetune.evaluation.metrics import figures_of
from finetune.reporting.sources import load_source
from finetune.training.checkpoints import read_checkpoint, write_checkpoint

FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "macro_f1",
    "nll": "nll",
    "brier": "brier",
    "calibration_error": "calibration_error",
}
CLASSES = ("blue", "green", "red")
Outlet = Callable[[Path], dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of image, of which the sure classifier takes a few for another one."""
    root = tmp_path_factory.mktemp("images")
    from PIL import Image

    for split in ("train", "val", "test"):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(6):
                wrong = index == 0 and number == 1
                colour = [40 + index, 40, 40]
                colour[2 - (0 if wrong else number)] = 200
                Image.new("RGB", (32, 32), tuple(colour)).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classifier answers with logits of about 2,000, its answers to val kept."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("runs") / "sure"
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints" / "best.ckpt"
    classifier = ImageClassifier(CLASSES, "test_resnet", pretrained=False, image_size=32).eval()
    data = ImageFolderDataModule(folder, num_workers=0, cache="off")
    view = (classifier.preprocessing,)
    batches = list(data.evaluation_dataloader("val", preprocessings=view))
    with torch.no_grad():
        images = torch.cat([views[0] for views, _ in batches])
        head = classifier.network.get_classifier()
        spread = classifier(images)
        head.bias -= spread.mean(0)
        scale = 2000 / (spread - spread.mean(0)).abs().max()
        head.weight *= scale
        head.bias *= scale
        logits = classifier(images)
    val = {
        "logits": logits,
        "labels": torch.cat([labels for _, labels in batches]),
        "paths": [str(image.path) for image in data.images("val")],
    }
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=dict(classifier.hparams),
        entry={**classifier.entry(), "val": val},
    )
    return run
