"""Stages are read where held-out images say so, and only there."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from finetune.spec.images import LabelledImage
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task
from finetune.tasks.units import AsTheyAre
from finetune.training.label_probe import fit_label_probe
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.phases.probe import _val_agrees
from finetune.training.phases.stage_choice import answers_better, is_affordable, scales_of
from finetune.training.ridge_probe import fit_ridge_probe


def made(head: float, stages: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a head, and of two stages of unlike spread, that know the class so well."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(90) % 3
    centres = torch.randn(3, 30, generator=generator)
    noise = torch.randn(90, 30, generator=generator)
    knows = torch.tensor([head] * 20 + [stages] * 10)
    features = centres[labels] * knows + noise
    return features[:, :20], features[:, 20:] * torch.tensor([1e-3] * 4 + [50.0] * 6), labels


def both(head: Tensor, further: Tensor, labels: Tensor) -> tuple[Probe, Probe]:
    scaled = further * scales_of(head, further, [4, 6])
    plain = fit_probe(head, labels, 3, held_out=True)
    return fit_probe(torch.cat([head, scaled], dim=1), labels, 3, held_out=True), plain


def test_the_scales_bring_each_stage_to_the_mean_spread_of_the_head() -> None:
    head, further, _ = made(1.0, 1.0)
    scaled = further * scales_of(head, further, [4, 6])
    expected = head.std(dim=0, correction=0).mean()
    for part in scaled.split([4, 6], dim=1):
        torch.testing.assert_close(part.std(dim=0, correction=0).mean(), expected)
    still = torch.zeros_like(further)
    assert torch.equal(scales_of(head, still, [4, 6]), torch.ones(10))


@pytest.mark.parametrize(("head", "stages", "pays"), [(0.3, 1.2, True), (0.8, 0.0, False)])
def test_what_answers_held_out_images_better_is_taken(
    head: float, stages: float, pays: bool
) -> None:
    features, further, labels = made(head, stages)
    other, plain = both(features, further, labels)
    assert answers_better(other, plain, MULTICLASS, labels, torch.arange(90)) is pays


@pytest.mark.parametrize(("head", "stages", "pays"), [(0.3, 1.2, True), (0.8, 0.0, False)])
@pytest.mark.parametrize("task", [MULTILABEL, REGRESSION], ids=["labels", "numbers"])
def test_labels_and_numbers_are_judged_by_their_own_loss(
    task: Task, head: float, stages: float, pays: bool
) -> None:
    features, further, classes = made(head, stages)
    if task is MULTILABEL:
        targets, fit = torch.nn.functional.one_hot(classes).double(), fit_label_probe
        targets[::7, 1] = torch.nan  # not known
    else:
        targets, fit = classes.double()[:, None] - 1, fit_ridge_probe
    wide = torch.cat([features, further * scales_of(features, further, [4, 6])], dim=1)
    count = targets.shape[1]
    plain, other = (fit(each, targets, count, held_out=True) for each in (features, wide))
    assert answers_better(other, plain, task, targets, torch.arange(90)) is pays


@pytest.mark.parametrize(
    ("fit", "loss"),
    [(fit_label_probe, binary_cross_entropy_with_logits), (fit_ridge_probe, mse_loss)],
)
def test_held_out_answers_are_those_that_chose_the_penalty(
    fit: Callable[..., Probe], loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    features, _, classes = made(0.5, 0.0)
    targets = (classes == 0).double()[:, None]
    probe = fit(features, targets, 1, held_out=True)
    held_out = loss(probe.held_out_logits, targets)
    assert float(held_out) == pytest.approx(probe.held_out_nll[probe.l2])
    assert held_out > loss(probe.logits(features), targets)
    assert fit(features, targets, 1).held_out_logits is None


def test_views_of_an_image_count_as_one() -> None:
    """Nine copies of each row make no gain surer."""
    labels, groups = torch.tensor([0, 1, 0, 1]), torch.arange(4)
    half = torch.zeros(4, 2, dtype=torch.float64)
    some = torch.tensor([[3.0, 0], [0, 3.0], [0, 0.8], [0, 0.4]], dtype=torch.float64)
    other, plain = (
        Probe(torch.zeros(2, 1), torch.zeros(2), 1.0, held_out_logits=each) for each in (some, half)
    )
    alone = answers_better(other, plain, MULTICLASS, labels, groups)
    copies = [
        Probe(each.weight, each.bias, 1.0, held_out_logits=each.held_out_logits.repeat(9, 1))
        for each in (other, plain)
    ]
    assert answers_better(*copies, MULTICLASS, labels.repeat(9), groups.repeat(9)) is alone


def test_what_was_never_held_out_decides_nothing() -> None:
    unknown = Probe(
        torch.zeros(2, 1), torch.zeros(2), 1.0, held_out_logits=torch.full((4, 2), torch.nan)
    )
    assert not answers_better(
        unknown, unknown, MULTICLASS, torch.tensor([0, 1, 0, 1]), torch.arange(4)
    )


def test_many_images_of_many_classes_are_not_fitted_twice() -> None:
    features, further, _ = made(1.0, 1.0)
    assert is_affordable(features, further, 3)
    assert not is_affordable(features, further[:, :0], 3)
    assert not is_affordable(torch.empty(50_000, 1280), torch.empty(50_000, 496), 10)


@pytest.mark.parametrize(("sign", "agrees"), [(1.0, True), (-1.0, False), (None, True)])
def test_val_images_have_a_veto(sign: float | None, agrees: bool) -> None:
    """What cross-validation prefers for resembling training images may fail on others."""
    labels = [] if sign is None else [0, 1]
    images = [LabelledImage(Path(f"{label}.png"), label) for label in labels]
    further = torch.tensor([[1.0], [-1.0]]) * (sign or 0.0)
    kept = SimpleNamespace(
        datamodule=SimpleNamespace(images=lambda side: images if side == "val" else []),
        classifier=SimpleNamespace(task=MULTICLASS, unit=AsTheyAre()),
        entering=lambda side: (torch.zeros(2, 1), further),
    )
    plain, other = (
        Probe(torch.tensor(rows, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 1.0)
        for rows in ([[0.0], [0.0]], [[0.0, 1.0], [0.0, -1.0]])
    )
    assert _val_agrees(kept, plain, other, torch.ones(1)) is agrees  # type: ignore[arg-type]
