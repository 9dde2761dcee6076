"""The seam holds more than one class an image: a task that no room has heard of goes through all.

Several labels an image, in its smallest form: independent sigmoids, -1 for what is not known.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader

from finetune import Ensemble, ImageClassifier, average_checkpoints
from finetune.combining.calibration import fit_temperature
from finetune.combining.members import ClassifierMember
from finetune.combining.selection import select_members
from finetune.errors import CheckpointError, CheckpointMismatchError
from finetune.prediction.predictor import load
from finetune.tasks import categorical
from finetune.tasks.held_out_loss import Metric, held_out_loss
from finetune.tasks.known import TASKS, task_of
from finetune.tasks.multiclass import MULTICLASS, MultiClass
from finetune.tasks.task import Task
from finetune.training.checkpoints import ENTRY, read_checkpoint, read_content, save_atomically
from finetune.training.model_selection import Candidate

NAMES = ("red", "round", "small")


class _Loss(nn.Module):
    weight: Tensor | None = None

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = targets >= 0
        losses = nn.functional.binary_cross_entropy_with_logits(
            outputs, targets.clamp_min(0).float(), reduction="none"
        )
        return losses[known].mean()


class Labels(MultiClass):
    """Independent yes and no for each name."""

    name: ClassVar[str] = "labels"

    def checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(names)

    def unexpected(self, targets: Tensor, images: int, outputs: int) -> str | None:
        return None if tuple(targets.shape) == (images, outputs) else "another shape"

    def loss(self, *, label_smoothing: float, focal_gamma: float) -> _Loss:  # type: ignore[override]
        return _Loss()

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid().float()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return logsigmoid(outputs)

    def decide(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).long()

    def named(self, outputs: Tensor, names: Sequence[str]) -> list[str]:
        rows = self.decide(outputs).bool().tolist()
        return ["|".join(n for n, has in zip(names, row, strict=True) if has) for row in rows]

    def confidence(self, outputs: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
        return outputs.abs().sigmoid().amin(dim=-1)

    def figure_names(self, outputs: int) -> list[str]:
        return ["accuracy", "nll"]

    def figures(
        self, outputs: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None
    ) -> dict[str, float]:
        rows = self.rows(outputs, targets)
        return {
            "accuracy": 1 - held_out_loss(*rows, "accuracy"),
            "nll": held_out_loss(*rows, "nll"),
        }

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        signs = 2 * targets.clamp_min(0) - 1
        return -(logsigmoid(signs * outputs.double()) * (targets >= 0)).mean(dim=-1)

    def held_out_loss(self, outputs: Tensor, targets: Tensor, metric: Metric) -> float:
        return held_out_loss(*self.rows(outputs, targets), metric)

    def mixture(self, member_outputs: Tensor, coefficients: Sequence[float]) -> Tensor:
        return self.outputs_of(categorical.log_mean(self.choices(member_outputs), coefficients))

    def choices(self, outputs: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(outputs), outputs], dim=-1)

    def outputs_of(self, choices: Tensor) -> Tensor:
        return choices[..., 1] - choices[..., 0]

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        known = targets >= 0
        return self.choices(outputs)[..., known, :], targets[known]


LABELS: Task = Labels()


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "labels", LABELS)  # type: ignore[arg-type]


def made(path: Path, seed: int, task: str = "labels") -> Path:
    """A checkpoint of random weights, whose entry names a task."""
    torch.manual_seed(seed)
    plain = ImageClassifier(NAMES, "baseline_mlp", pretrained=False, image_size=16)
    entry = {**plain.entry(), "task": task, "fit": {"strategy": "all", "phase": 0}}
    content = {
        "state_dict": plain.state_dict(),
        "hyper_parameters": dict(plain.hparams),
        ENTRY: entry,
    }
    save_atomically(content, path)
    return path


def held_out(members: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(-1, 2, (60, 3), generator=generator)
    noise = torch.randn(members, 60, 3, generator=generator)
    return (targets.clamp_min(0) * 2 - 1) + noise, targets


def test_a_checkpoint_says_which_task_it_is(tmp_path: Path) -> None:
    path = made(tmp_path / "a.ckpt", 0)
    classifier = ImageClassifier.from_checkpoint(path)
    assert classifier.task == LABELS
    assert classifier.entry()["task"] == "labels"
    assert Candidate.read(path).task == LABELS
    content = read_content(made(tmp_path / "b.ckpt", 0, "multiclass"))
    del content[ENTRY]["task"]
    save_atomically(content, tmp_path / "earlier.ckpt")
    assert read_checkpoint(tmp_path / "earlier.ckpt").task == MULTICLASS


@pytest.mark.parametrize("task", ["detection", None, 3, ["labels"]])
def test_an_unknown_task_is_one_clear_line(tmp_path: Path, task: object) -> None:
    with pytest.raises(CheckpointError, match=r"^Expected one of the tasks .*update finetune\.$"):
        task_of({"task": task}, "x.ckpt")
    with pytest.raises(CheckpointError, match="Expected one of the tasks multiclass"):
        read_checkpoint(made(tmp_path / "x.ckpt", 0, task))  # type: ignore[arg-type]


def test_it_learns_by_its_own_loss_and_is_judged_by_its_own_figures(tmp_path: Path) -> None:
    classifier = ImageClassifier.from_checkpoint(made(tmp_path / "a.ckpt", 0))
    images = torch.rand(16, 3, 16, 16)
    targets = torch.stack([images.mean(dim=(1, 2, 3)) > 0.5, images[:, 0, 0, 0] > 0.5], 1).long()
    targets = torch.cat([targets, torch.full((16, 1), -1)], dim=1)
    batches = DataLoader(list(zip(images, targets, strict=True)), batch_size=8)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier.train(), batches, batches)
    expected = classifier.task.figures(*classifier.answers["val"])
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(expected["accuracy"])
    assert "val/balanced_accuracy" not in trainer.callback_metrics


def test_an_ensemble_pools_by_its_own_probabilities(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"{seed}.ckpt", seed) for seed in range(3)]
    ensemble = Ensemble.from_checkpoints(paths)
    assert ensemble.task == LABELS
    images = {ensemble.preprocessings[0]: torch.rand(4, 3, 16, 16)}
    alone = ensemble.member_logits(images)
    answer = ensemble.probabilities(images)
    torch.testing.assert_close(answer, alone.sigmoid().mean(dim=0))
    votes = (alone > 0).long()
    apart = torch.stack([votes[i] != votes[j] for i, j in ((0, 1), (0, 2), (1, 2))])
    disagreement = ensemble.answer(alone).uncertainty.disagreement
    torch.testing.assert_close(disagreement, apart.double().mean(dim=(0, 2)))
    ensemble.save(tmp_path / "all.ckpt")
    again = Ensemble.from_file(tmp_path / "all.ckpt")
    assert again.task == LABELS
    torch.testing.assert_close(again.probabilities(images), answer)
    shares = Ensemble.from_checkpoints(paths, pooling="vote").pool(alone)
    assert torch.equal(shares > 0, votes.sum(dim=0) >= 2)


def test_averages_and_predictions_keep_the_task(tmp_path: Path) -> None:
    from PIL import Image

    paths = [made(tmp_path / f"{seed}.ckpt", seed) for seed in range(2)]
    soup = average_checkpoints(paths)
    assert soup.classifier().task == LABELS
    soup.save(tmp_path / "soup.ckpt")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    predictions = load(tmp_path / "soup.ckpt")(tmp_path / "a.png")
    torch.testing.assert_close(predictions.probabilities, predictions.logits.sigmoid())
    named = {name for name, value in zip(NAMES, predictions.logits[0], strict=True) if value > 0}
    assert set(predictions.labels[0].split("|")) - {""} == named


def test_members_are_selected_and_calibrated_on_what_is_known() -> None:
    members, targets = held_out(4)
    members = torch.cat([members, torch.randn(1, 60, 3)])  # one that knows nothing
    chosen = select_members(*LABELS.rows(members, targets), seed=0)
    assert 4 not in chosen.members
    outputs = 5 * members[0].double()  # far too sure
    fit = fit_temperature(*LABELS.rows(outputs, targets))
    assert fit.images == int((targets >= 0).sum())
    known = targets >= 0
    reference = nn.functional.binary_cross_entropy_with_logits(
        (outputs / fit.temperature)[known], targets[known].double()
    )
    assert fit.nll_after == pytest.approx(float(reference), abs=1e-9)
    for factor in (0.9, 1.1):
        other = nn.functional.binary_cross_entropy_with_logits(
            (outputs / fit.temperature / factor)[known], targets[known].double()
        )
        assert float(other) > float(reference)


def test_members_of_two_tasks_are_not_combined(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"{task}.ckpt", 0, task) for task in ("labels", "multiclass")]
    members = [ClassifierMember(ImageClassifier.from_checkpoint(p), str(p)) for p in paths]
    with pytest.raises(CheckpointMismatchError, match="Expected the task labels in"):
        Ensemble(members)
    with pytest.raises(CheckpointMismatchError, match="Expected task"):
        average_checkpoints(paths)
