"""A figure has one value, whatever tells it, also of answers that are too sure for a float."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune import ImageClassifier, predict
from finetune.cli import main
from finetune.combining.ensemble import Ensemble
from finetune.data.datamodule import ImageFolderDataModule
from finetune.reporting.sources import load_source
from finetune.tasks.multiclass import MULTICLASS
from finetune.training.checkpoints import save_atomically

WriteCheckpoint = Callable[..., Path]
NAMES = ["accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "calibration_error"]


class Sure:
    """A run whose classifier answers with logits of 2,000, right or wrong; its split is known."""

    def __init__(self, checkpoint: Path, root: Path, folder: Path) -> None:
        self.root, self.run = root, folder / "sure"
        self.checkpoint = self.run / "checkpoints" / "best.ckpt"
        self.checkpoint.parent.mkdir(parents=True)
        shutil.copy(checkpoint, self.checkpoint)
        (self.run / "config.yaml").touch()
        logits = self.answers("val")[0]
        content = torch.load(self.checkpoint, weights_only=True)
        head = [name for name in content["state_dict"] if name.startswith("network.fc.")]
        for name in head:
            content["state_dict"][name] *= 2000 / logits.abs().max()
        save_atomically(content, self.checkpoint)
        logits, labels, paths = self.answers("val")
        content["finetune"]["val"] = {"logits": logits, "labels": labels, "paths": paths}
        save_atomically(content, self.checkpoint)

    def data(self) -> ImageFolderDataModule:
        return ImageFolderDataModule(
            self.root, val_fraction=0.4, test_fraction=0.2, num_workers=0, cache="off"
        )

    def answers(self, stage: str) -> tuple[Tensor, Tensor, list[str]]:
        classifier, data = ImageClassifier.from_checkpoint(self.checkpoint).eval(), self.data()
        view = (classifier.preprocessing,)
        batches = list(data.evaluation_dataloader(stage, preprocessings=view))
        with torch.no_grad():
            logits = torch.cat([classifier(views[0]) for views, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        return logits, labels, [str(image.path) for image in data.images(stage)]

    def expected(self, stage: str) -> dict[str, float]:
        logits, labels, _ = self.answers(stage)
        figures = MULTICLASS.figures(logits, labels)
        nll = torch.nn.functional.cross_entropy(logits.double(), labels)
        assert figures["nll"] == pytest.approx(float(nll), rel=1e-12)
        assert figures["nll"] > 100, "no answer is wrong for sure: the test shows nothing"
        assert 0 < figures["accuracy"] < 1
        return figures


@pytest.fixture(scope="module")
def sure(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Sure:
    checkpoint = write_probe("blurred", noise=4.0, seed=1)
    return Sure(checkpoint, colour_folder, tmp_path_factory.mktemp("runs"))


def written(folder: Path, stage: str) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())[stage]


def same(found: dict[str, float], expected: dict[str, float], rel: float = 1e-8) -> None:
    assert {name: found[name] for name in NAMES} == pytest.approx(
        {name: expected[name] for name in NAMES}, rel=rel
    )


@pytest.mark.parametrize("kind", ["classifier", "ensemble", "geometric ensemble"])
def test_a_test_tells_one_value_everywhere(
    sure: Sure, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, run = sure.checkpoint, sure.run
    if kind != "classifier":
        pooling = "geometric" if "geometric" in kind else "mean"
        run = tmp_path / "run"
        checkpoint = run / "checkpoints" / "best.ckpt"
        checkpoint.parent.mkdir(parents=True)
        (run / "config.yaml").touch()
        Ensemble.from_checkpoints([sure.checkpoint] * 2, pooling=pooling).save(checkpoint)
    options = ["--data.cache=off"]
    if kind == "classifier":
        options.append("--trainer.accelerator=cpu")
    assert main(["test", f"--ckpt_path={checkpoint}", f"--data.root={sure.root}", *options]) == 0
    shown = capsys.readouterr().out
    found = written(run, "test")
    same(found, sure.expected("test"), rel=1e-5)  # other batches round otherwise
    same(json.loads((run / "report" / "metrics.json").read_text()), found)
    assert f"NLL {found['nll']:.3f}" in shown
    # What other commands read of it again: the table, and the page.
    same(load_source(run / "report" / "predictions.csv").evaluation.to_dict(), found)
    assert f"{found['nll']:.4f}" in (run / "report" / "index.html").read_text()
    if kind == "classifier":
        shutil.copytree(run / "report", tmp_path / "report")
        table = str(tmp_path / "report" / "predictions.csv")
        assert main(["compare", str(run), table]) == 0
        assert capsys.readouterr().out.count(f"{found['nll']:.4f}") == 2


def test_val_has_one_value_in_every_command(
    sure: Sure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = sure.expected("val")
    best, root = f"--ckpt_path={sure.checkpoint}", f"--data.root={sure.root}"
    assert main(["validate", best, root, "--trainer.accelerator=cpu", "--data.cache=off"]) == 0
    same(written(sure.run, "val"), expected, rel=1e-5)
    same(load_source(sure.checkpoint).evaluation.to_dict(), expected)
    table = tmp_path / "answers.csv"
    predict(ImageClassifier.from_checkpoint(sure.checkpoint), sure.answers("val")[2]).to_csv(table)
    capsys.readouterr()
    members = [str(sure.checkpoint), str(sure.checkpoint), str(table)]
    options = ["--output", str(tmp_path / "e.ckpt"), "--data.cache", "off"]
    assert main(["ensemble", *members, root, *options]) == 0
    shown = capsys.readouterr().out
    assert [float(nll) for nll in re.findall(r"nll ([\d.]+)", shown)[:4]] == pytest.approx(
        [expected["nll"]] * 4, rel=1e-5
    )
