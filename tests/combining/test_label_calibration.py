"""Several labels an image: risk control, scaling label by label, thresholds for a precision."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from finetune.combining import label_scaling
from finetune.combining.calibrated_answer import Calibration, fit_calibration
from finetune.combining.conformal import fit_label_sets
from finetune.combining.label_scaling import fit_label_scaling
from finetune.errors import CalibrationError, UsageError
from finetune.tasks import label_scores
from finetune.tasks.label_scores import best_thresholds
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION

NAN = float("nan")


def answers(images: int, labels: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and what is true; some is not known, and some images have no label."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(images, labels, generator=generator) < 0.3).float()
    noise = torch.randn(images, labels, generator=generator)
    outputs = 2 * targets - 1 + noise
    targets[torch.rand(images, labels, generator=generator) < 0.1] = NAN
    return outputs, targets


def missed_share(sets: Tensor, targets: Tensor) -> Tensor:
    has = targets == 1
    return (has & ~sets).sum(dim=1) / has.sum(dim=1).clamp_min(1)


def test_few_of_the_accepted_images_have_a_label_wrong() -> None:
    """Judged by what is known, and by the thresholds, also where they are far from 0.5."""
    outputs, targets = answers(200, labels=3)
    fitted = fit_calibration(MULTILABEL, outputs - 2, targets, reject_risk=0.15)
    assert fitted.reject is not None
    given = fitted.logits((outputs - 2).double()).sigmoid()
    rejected = fitted.rejected(MULTILABEL, outputs - 2)
    wrong, sure = [], []
    for row, truth in zip(given.tolist(), targets.tolist(), strict=True):
        named = [p > t for p, t in zip(row, fitted.thresholds, strict=True)]
        pairs = zip(named, truth, strict=True)
        wrong.append(any(yes != (has == 1) for yes, has in pairs if not math.isnan(has)))
        sure.append(min(p if yes else 1 - p for p, yes in zip(row, named, strict=True)))
    accepted = [at >= fitted.reject.threshold for at in sure]
    assert rejected.tolist() == [not each for each in accepted]
    assert any(p < 0.5 for p in fitted.thresholds)
    share = sum(w for w, kept in zip(wrong, accepted, strict=True) if kept) / sum(accepted)
    assert fitted.reject.risk == pytest.approx(share)
    assert share <= 0.15 < sum(wrong) / len(wrong)
    assert fitted.reject.coverage == pytest.approx(sum(accepted) / 200)
    # None that is less strict would do.
    further = sorted({at for at in sure if at < fitted.reject.threshold}, reverse=True)
    for line in further:
        kept = [w for w, at in zip(wrong, sure, strict=True) if at >= line]
        assert sum(kept) / len(kept) > 0.15


@pytest.mark.parametrize(("images", "alpha"), [(30, 0.1), (100, 0.05), (60, 0.3)])
def test_no_more_than_the_share_of_true_labels_is_missed(images: int, alpha: float) -> None:
    risks = []
    for seed in range(300):
        outputs, targets = answers(images + 100, seed=seed)
        probabilities = outputs.sigmoid()
        rule = fit_label_sets(probabilities[:images], targets[:images], alpha=alpha)
        sets = rule.sets(probabilities[images:])
        risks.append(float(missed_share(sets, targets[images:]).mean()))
    error = np.std(risks) / len(risks) ** 0.5
    assert np.mean(risks) <= alpha + 3 * error
    # Theorem 2: no more than 2 / (n + 1) below, where losses do not jump.
    assert np.mean(risks) >= alpha - 2 / (images + 1) - 3 * error


def test_the_threshold_is_the_highest_that_is_allowed() -> None:
    outputs, targets = answers(80)
    probabilities = (4 * outputs).round().div(4).sigmoid()  # with equals
    rule = fit_label_sets(probabilities, targets, alpha=0.15)
    allowed = [
        1 - float(t)
        for t in torch.unique(1 - probabilities.double())
        if (missed_share((1 - probabilities.double()) <= t, targets).sum() + 1) / 81 <= 0.15
    ]
    assert rule.threshold == pytest.approx(1 - max(allowed))
    assert (missed_share(rule.sets(probabilities), targets).sum() + 1) / 81 <= 0.15


def test_too_few_images_give_sets_of_all_labels_and_lenience_gives_none() -> None:
    outputs, targets = answers(8)
    rule = fit_label_sets(outputs.sigmoid(), targets, alpha=0.1)
    assert rule.sets(outputs.sigmoid()).all()
    empty = fit_label_sets(outputs.sigmoid(), torch.zeros_like(targets), alpha=0.2)
    assert not empty.sets(outputs.sigmoid()).any()  # nobody has a label: nothing can be missed
    with pytest.raises(CalibrationError, match="alpha"):
        fit_label_sets(outputs.sigmoid(), targets, alpha=1.0)
    with pytest.raises(CalibrationError, match="held-out"):
        fit_label_sets(outputs[:0], targets[:0], alpha=0.1)


def test_without_a_prior_the_scaling_is_platts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scaling, "FACTOR", 1e6)
    monkeypatch.setattr(label_scaling, "SHIFT", 1e6)
    outputs, targets = answers(300, labels=3)
    outputs = outputs * torch.tensor([3.0, 0.5, 1.0]) + torch.tensor([0.0, 1.0, -2.0])
    found = fit_label_scaling(outputs, targets, temperature=1.0)
    for label in range(3):
        known = ~targets[:, label].isnan()
        reference = LogisticRegression(C=1e10, tol=1e-10).fit(
            outputs[known, label].double().numpy()[:, None], targets[known, label].numpy()
        )
        assert found.factors[label] == pytest.approx(float(reference.coef_[0, 0]), rel=1e-3)
        assert found.shifts[label] == pytest.approx(float(reference.intercept_[0]), abs=1e-3)


def test_a_label_of_few_images_stays_with_the_common_factor() -> None:
    outputs, targets = answers(400, labels=2)
    outputs[:, 1] *= 6
    targets[3:, 1] = NAN
    found = fit_label_scaling(outputs, targets, temperature=2.0)
    assert found.factors[1] == pytest.approx(0.5, rel=0.6)
    assert abs(found.shifts[1]) < 1
    nothing = fit_label_scaling(outputs, torch.full_like(targets, NAN), temperature=2.0)
    assert nothing.factors == pytest.approx((0.5, 0.5))
    assert nothing.shifts == (0, 0)


def test_scaling_lowers_the_loss_where_labels_differ_and_survives_a_checkpoint() -> None:
    outputs, targets = answers(500)
    outputs[:, 0] = 5 * outputs[:, 0] + 2
    held, others = slice(0, 250), slice(250, 500)
    common = fit_calibration(MULTILABEL, outputs[held], targets[held])
    each = fit_calibration(
        MULTILABEL,
        outputs[held],
        targets[held],
        scaling="label",
        conformal_alpha=0.1,
        wanted_precision=0.9,
    )
    losses = [
        float(MULTILABEL.losses(c.logits(outputs[others]), targets[others]).mean())
        for c in (common, each)
    ]
    assert losses[1] < losses[0] - 0.01
    again = Calibration.from_dict(each.to_dict())
    assert again == each
    assert torch.equal(again.logits(outputs), each.logits(outputs))
    order = each.logits(outputs).argsort(dim=0)
    assert torch.equal(order, outputs.double().argsort(dim=0))


def test_thresholds_have_the_precision_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scores, "SHRINKAGE", 0.0)
    outputs, targets = answers(400, labels=4)
    given, truth = outputs.double().numpy(), targets.double().numpy()
    chosen = np.array(best_thresholds(given, truth, 0.8))
    probabilities = 1 / (1 + np.exp(-given))
    for label in range(4):
        known = ~np.isnan(truth[:, label])
        p, has = probabilities[known, label], truth[known, label] == 1
        assert has[p > chosen[label]].mean() >= 0.8
        found = has[p > chosen[label]].sum()
        more = [t for t in p if has[p >= t].sum() > found]
        assert all(has[p >= t].mean() < 0.8 for t in more)


def test_a_label_that_cannot_be_so_precise_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scores, "SHRINKAGE", 0.0)
    outputs = np.array([[5.0, 1], [4, 2], [3, 3], [2, 4]])
    targets = np.array([[0.0, 0], [1, 1], [0, 1], [1, 1]])
    first, second = best_thresholds(outputs, targets, 0.9)
    assert first > 1 - 1e-8
    assert 1 / (1 + np.exp(-1.0)) < second < 1 / (1 + np.exp(-2.0))


def test_what_a_task_has_not_is_refused() -> None:
    logits, labels = torch.randn(60, 3), torch.arange(60) % 3
    for options in ({"scaling": "label"}, {"wanted_precision": 0.9}):
        with pytest.raises(UsageError, match="several labels an image"):
            fit_calibration(MULTICLASS, logits, labels, **options)  # type: ignore[arg-type]
    numbers = torch.randn(60, 1), torch.randn(60, 1)
    with pytest.raises(UsageError, match="no image is surer than another"):
        fit_calibration(REGRESSION, *numbers, conformal_alpha=0.1, reject_risk=0.1)
