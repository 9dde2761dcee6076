"""Several labels an image: loss and figures against torch and scikit-learn; what is not known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, hamming_loss, log_loss, roc_auc_score
from torch import Tensor, nn

from finetune.errors import TrainingError, UsageError
from finetune.tasks.label_scores import SHRINKAGE, best_thresholds
from finetune.tasks.losses import ClassificationLoss
from finetune.tasks.multilabel import MULTILABEL, BinaryLoss, asymmetric, offsets
from finetune.tasks.task import Task
from finetune.training.held_out_pass import logged_figures

TASK: Task = MULTILABEL
NAN = float("nan")


def answers(images: int = 80, labels: int = 4, *, unknown: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(images, labels, generator=generator)
    noise = 2 * torch.randn(images, labels, generator=generator)
    targets = (outputs + noise > 0.7).float()
    targets[torch.rand(images, labels, generator=generator) < unknown] = NAN
    return outputs, targets


def test_the_loss_is_torchs_over_what_is_known() -> None:
    outputs, targets = answers()
    known = ~targets.isnan()
    expected = nn.functional.binary_cross_entropy_with_logits(outputs[known], targets[known])
    torch.testing.assert_close(BinaryLoss()(outputs, targets), expected)
    smoothed = 0.9 * targets[known] + 0.05
    expected = nn.functional.binary_cross_entropy_with_logits(outputs[known], smoothed)
    torch.testing.assert_close(BinaryLoss(label_smoothing=0.1)(outputs, targets), expected)


def test_focal_loss_is_torchvisions() -> None:
    from torchvision.ops import sigmoid_focal_loss  # type: ignore[import-untyped]

    outputs, targets = answers(unknown=0)
    expected = sigmoid_focal_loss(outputs, targets, alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(BinaryLoss(focal_gamma=2)(outputs, targets), expected)


def test_asymmetric_loss_is_timms() -> None:
    from timm.loss import AsymmetricLossMultiLabel

    outputs, targets = answers(unknown=0)
    outputs = outputs.clone().requires_grad_()
    reference = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)
    expected = reference(outputs, targets) / targets.shape[1]  # a mean over images alone
    found = asymmetric(BinaryLoss(focal_gamma=1), 4.0)(outputs, targets)
    torch.testing.assert_close(found, expected)
    slopes = [
        torch.autograd.grad(each, outputs, retain_graph=True)[0] for each in (found, expected)
    ]
    torch.testing.assert_close(*slopes)
    plain = BinaryLoss()
    assert asymmetric(plain, 0.0) is plain
    with pytest.raises(UsageError, match="negative_gamma"):
        asymmetric(ClassificationLoss(), 4.0)


def test_what_is_not_known_has_no_gradient() -> None:
    outputs, targets = answers()
    outputs.requires_grad_()
    BinaryLoss(label_smoothing=0.1, focal_gamma=1)(outputs, targets).backward()
    assert outputs.grad is not None
    assert bool((outputs.grad[targets.isnan()] == 0).all())
    assert bool((outputs.grad[~targets.isnan()] != 0).all())
    nothing = BinaryLoss()(outputs.detach(), torch.full_like(targets, NAN))
    assert float(nothing) == 0


@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_figures_are_those_of_scikit_learn(unknown: float) -> None:
    outputs, targets = answers(unknown=unknown)
    thresholds = [0.3, 0.5, 0.6, 0.8]
    figures = TASK.figures(outputs, targets, thresholds)
    scores, truth = outputs.double().sigmoid().numpy(), targets.double().numpy()
    known = ~np.isnan(truth)
    named = scores > np.array(thresholds)
    columns = [(truth[k, i], scores[k, i], named[k, i]) for i, k in enumerate(known.T)]
    expected = {
        "map": np.mean([average_precision_score(t, s) for t, s, _ in columns]),
        "macro_auroc": np.mean([roc_auc_score(t, s) for t, s, _ in columns]),
        "macro_f1": np.mean([f1_score(t, n) for t, _, n in columns]),
        "hamming_loss": hamming_loss(truth[known], named[known]),
        "nll": log_loss(truth[known], scores[known]),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-9), name
    right = np.where(known, named == truth, True).all(axis=1)
    assert figures["exact_set_accuracy"] == pytest.approx(right.mean())
    assert list(figures) == TASK.figure_names(4)
    assert float(TASK.losses(outputs, targets).mean()) == pytest.approx(figures["nll"], abs=1e-12)
    assert TASK.held_out_loss(outputs, targets, "nll") == pytest.approx(figures["nll"], abs=1e-9)


def test_a_label_that_no_image_has_is_left_out_of_the_means() -> None:
    outputs, targets = answers()
    fewer = TASK.figures(outputs[:, :3], targets[:, :3])
    targets[:, 3] = torch.where(targets[:, 3].isnan(), NAN, 0.0)
    more = TASK.figures(outputs, targets)
    for name in ("map", "macro_auroc", "macro_f1"):
        assert more[name] == pytest.approx(fewer[name])
    assert all(np.isfinite(list(more.values())))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_no_other_threshold_has_a_better_f1_where_nothing_is_drawn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(30, 1)).round(1)
    truth = (scores + generator.normal(size=(30, 1)) > 0.5).astype(float)
    if not 0 < truth.sum() < 30:
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("finetune.tasks.label_scores.SHRINKAGE", 1e-12)
        (threshold,) = best_thresholds(scores, truth)
    probabilities = 1 / (1 + np.exp(-scores))
    reached = f1_score(truth, probabilities > threshold)
    tried = [f1_score(truth, probabilities > each) for each in np.linspace(0.01, 0.99, 50)]
    assert reached >= max(tried) - 1e-12


def test_thresholds_of_rare_labels_are_drawn_to_the_common_one() -> None:
    outputs, targets = answers(400, unknown=0)
    outputs -= 2  # all labels are answered too low alike
    alone = TASK.thresholds(outputs, targets)
    assert alone is not None
    assert max(alone) < 0.45
    having = targets[:, 3].nonzero().flatten()
    targets[having[1:], 3] = NAN  # one image is left that has it
    targets[having[0], 3], outputs[having[0], 3] = 1, 5.0
    thresholds = TASK.thresholds(outputs, targets)
    assert thresholds is not None
    assert thresholds[3] < 0.6  # by itself it would be as sure as that one image
    assert SHRINKAGE > 1


def test_thresholds_where_nothing_can_be_chosen() -> None:
    assert TASK.thresholds(torch.zeros(3, 2), torch.full((3, 2), NAN)) == [0.5, 0.5]
    assert TASK.thresholds(torch.zeros(0, 2), torch.zeros(0, 2)) == [0.5, 0.5]
    assert offsets(None, 3).tolist() == [0, 0, 0]


def test_targets_are_judged() -> None:
    collated = TASK.collate([(1, 0, -1), (0, 0, 1)])
    assert collated.dtype == torch.float32
    assert collated.nan_to_num(nan=-1).tolist() == [[1, 0, -1], [0, 0, 1]]
    assert TASK.unexpected(collated, 2, 3) is None
    assert TASK.unexpected(collated, 2, 4) is not None
    assert TASK.unexpected(collated * 2, 2, 3) is not None
    assert TASK.unexpected(collated.long(), 2, 3) is not None
    assert len({*TASK.strata(torch.cat([collated, collated]))}) == 2
    assert TASK.strata(collated[:0]) == []


def test_rows_and_mixtures_agree_with_sigmoids() -> None:
    outputs, targets = answers()
    rows, truth = TASK.rows(outputs, targets)
    assert len(truth) == int((~targets.isnan()).sum())
    torch.testing.assert_close(rows.softmax(dim=-1)[:, 1], outputs.sigmoid()[~targets.isnan()])
    members = torch.stack([outputs, -outputs, 2 * outputs])
    mixed = TASK.mixture(members, [0.5, 0.25, 0.25])
    expected = torch.tensor([0.5, 0.25, 0.25]) @ members.sigmoid().flatten(1)
    torch.testing.assert_close(TASK.probabilities(mixed).flatten(), expected)
    assert TASK.named(torch.tensor([[1.0, -1, 2, -1], [-1, -1, -1, -1]]), "abcd") == ["a|c", ""]


def test_a_student_that_repeats_its_teacher_has_no_loss() -> None:
    outputs, _ = answers()
    taught = outputs.sigmoid()
    same = TASK.distillation_loss(outputs, taught, temperature=2.0)
    other = TASK.distillation_loss(-outputs, taught, temperature=2.0)
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(other) > 0.1


def test_what_there_is_not_is_refused() -> None:
    assert TASK.class_weights("none", [1, 2]) is None
    with pytest.raises(UsageError, match="thresholds are chosen for each label"):
        TASK.class_weights("balanced", [1, 2])
    with pytest.raises(TrainingError, match="which separates them"):
        TASK.checked_names(["a|b", "c"])
    with pytest.raises(TrainingError, match="at least two"):
        TASK.checked_names(["a"])


def test_val_figures_are_those_at_the_thresholds_that_these_images_choose() -> None:
    targets = (torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    outputs = 4 * targets - 6 + torch.randn(60, 3)  # right in their order, and all below 0.5
    logged = logged_figures(TASK, (outputs, targets), "val")
    assert logged["val/macro_f1"] > 0.8
    assert logged_figures(TASK, (outputs, targets), "test")["test/macro_f1"] < 0.5
    chosen = TASK.thresholds(outputs, targets)
    assert logged["val/macro_f1"] == TASK.figures(outputs, targets, chosen)["macro_f1"]
