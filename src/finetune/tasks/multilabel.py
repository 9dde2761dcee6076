"""Several labels an image: targets float ``(N, K)`` with 1, 0 or NaN (not known), outputs logits.

Each label is a question of its own, answered by a sigmoid. What is not known counts nowhere: not
in the loss, not in a figure, not in a calibration.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from finetune.errors import TrainingError, UsageError
from finetune.spec.choices import Metric
from finetune.spec.labels import NOT_KNOWN, SEPARATOR, cell
from finetune.tasks import categorical
from finetune.tasks.distillation import distillation_loss
from finetune.tasks.held_out_loss import held_out_loss
from finetune.tasks.label_scores import best_thresholds, label_scores, mean_of
from finetune.tasks.losses import ClassWeights, batch_mixing, check_loss
from finetune.tasks.task import Loss, Mixing, Task

ABSENT_ENOUGH = 0.05  # probability below which an absent label costs nothing: the paper's margin


class BinaryLoss(nn.Module):
    """Binary cross-entropy, focal (Lin et al. 2017) or asymmetric loss (Ridnik et al. 2021).

    Averaged over what is known.

    Args:
        label_smoothing: probability taken from the answer; half of it goes to yes, half to no.
        focal_gamma: how much less well answered labels count, >= 0; with ``negative_gamma`` those
            that an image has.
        negative_gamma: above 0, how much less well answered labels count that an image has not.
    """

    weight: Tensor | None = None

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        negative_gamma: float = 0.0,
    ) -> None:
        super().__init__()
        check_loss(label_smoothing, focal_gamma)
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.negative_gamma = negative_gamma

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits ``(B, K)`` for targets in ``[0, 1]``; NaN is not known."""
        known = ~targets.isnan()
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        wanted = torch.where(known, smoothed, 0.0).to(outputs.dtype)
        losses = nn.functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        answered = outputs.sigmoid()
        if self.negative_gamma:
            named = (answered - ABSENT_ENOUGH).clamp_min(0)
            present = (1 - answered).pow(self.focal_gamma) * logsigmoid(outputs)
            absent = named.pow(self.negative_gamma) * (-named).log1p()
            losses = -(wanted * present + (1 - wanted) * absent)
        elif self.focal_gamma:
            missed = wanted * (1 - answered) + (1 - wanted) * answered
            losses = losses * missed.pow(self.focal_gamma)
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


@dataclass(frozen=True, slots=True)
class MultiLabel(Task):
    """See :class:`finetune.tasks.task.Task`, which says what each of these is for."""

    name: ClassVar[str] = "multilabel"
    deciding: ClassVar[str] = "nll"
    rising: ClassVar[Set[str]] = {"map", "macro_auroc", "macro_f1", "exact_set_accuracy"}
    closed_form: ClassVar[Literal["multinomial", "binary", "ridge"]] = "binary"
    has_choices: ClassVar[bool] = True

    def checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """At least two labels, all different, none with the sign that separates them."""
        found = tuple(str(name) for name in names)
        if len(found) < 2 or len(set(found)) < len(found):
            raise TrainingError(
                f"Expected at least two different labels, found {list(found)[:5]}; "
                "name them in the manifest, such as red|round."
            )
        if odd := [name for name in found if SEPARATOR in name]:
            raise TrainingError(
                f"Expected labels without {SEPARATOR!r}, which separates them, found {odd[0]!r}; "
                "rename it."
            )
        return found

    def collate(self, targets: Sequence[tuple[int, ...]]) -> Tensor:
        """1, 0 and -1 (not known) for each label as float32 ``(N, K)``, NaN for -1."""
        values = torch.tensor(targets, dtype=torch.float32)
        return torch.where(values < 0, torch.nan, values)

    def unexpected(self, targets: Tensor, images: int, outputs: int) -> str | None:
        """Anything but 1, 0 or NaN for each label."""
        if targets.dtype != torch.float32 or tuple(targets.shape) != (images, outputs):
            return f"{tuple(targets.shape)} of {targets.dtype} instead of ({images}, {outputs})"
        if not bool(((targets == 0) | (targets == 1) | targets.isnan()).all()):
            return "others than 0, 1 and not known"
        return None

    def worded(self, targets: Tensor, names: Sequence[str]) -> list[str]:
        """Labels with ``|`` between them, ``?`` before those that are not known."""
        rows = targets.nan_to_num(nan=-1).long().tolist()
        return [cell(tuple(row), names) for row in rows]

    def names_in(self, cell: str) -> list[str]:
        """The labels that it has; not those that are not known."""
        return [name for name in cell.split(SEPARATOR) if name and not name.startswith(NOT_KNOWN)]

    def strata(self, targets: Tensor) -> list[int]:
        """A number for each set of labels."""
        if not len(targets):
            return []
        _, numbers = np.unique(np.nan_to_num(_floats(targets), nan=-1), axis=0, return_inverse=True)
        found: list[int] = numbers.reshape(-1).tolist()
        return found

    loss = BinaryLoss

    def class_weights(self, kind: ClassWeights, counts: Sequence[int]) -> Tensor | None:
        """None: a weight would shift the probabilities, and thresholds do its work.

        Raises:
            UsageError: weights are asked for.
        """
        if kind != "none":
            raise UsageError(
                f"Expected --model.class_weights none for several labels an image, found {kind}; "
                "leave it out: thresholds are chosen for each label."
            )
        return None

    def mixing(self, outputs: int, *, mixup_alpha: float, cutmix_alpha: float) -> Mixing | None:
        """As for one class an image; what is not known of one of two images is not of both."""
        return batch_mixing(outputs, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)

    def distillation_loss(self, outputs: Tensor, taught: Tensor, *, temperature: float) -> Tensor:
        """The mean over the labels of what each question, yes or no, differs by."""
        asked = self.choices(outputs).flatten(0, -2)
        answers = torch.stack([1 - taught, taught], dim=-1).flatten(0, -2)
        return distillation_loss(asked, answers, temperature=temperature)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Of each label, ``(..., K)`` in float32."""
        return outputs.sigmoid().float()

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Their logits, ``(..., K)``; 1 counts as 1 less half of what a float can lose."""
        most = 1 - torch.finfo(probabilities.dtype).eps / 2
        sure = probabilities.double().clamp_max(most)
        return categorical.log_of(probabilities) - (-sure).log1p()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Of each label, ``(..., K)`` in nats."""
        return logsigmoid(outputs)

    def decide(self, outputs: Tensor) -> Tensor:
        """1 or 0 for each label, ``(..., K)``, of outputs less the logits of the thresholds."""
        return (outputs > 0).float()

    def confidence(self, outputs: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
        """Probability of the least sure of the K answers, yes or no, ``(...)``."""
        named = outputs > offsets(thresholds, outputs.shape[-1]).to(outputs.device)
        return torch.where(named, outputs, -outputs).sigmoid().amin(dim=-1)

    def thresholds(
        self, outputs: Tensor, targets: Tensor, *, precision: float | None = None
    ) -> list[float]:
        """For F1, or for a wanted precision; see :func:`best_thresholds`."""
        given = outputs.detach().cpu().double().numpy()
        return best_thresholds(given, _floats(targets), precision)

    def figure_names(self, outputs: int) -> list[str]:
        """Ranking, decisions, likelihood."""
        return [
            *("map", "macro_auroc", "macro_f1", "exact_set_accuracy", "hamming_loss"),
            self.deciding,
        ]

    def figures(
        self, outputs: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Means over labels (mAP, AUROC, F1), sets that are right as a whole, answers that are not.

        A set is judged by what is known of it, and Hamming loss and NLL (nats) are means over what
        is known. Labels without an image, or without one that lacks them, are left out of a mean.
        """
        given = outputs.detach().cpu().double()
        truth = _floats(targets)
        shift = offsets(thresholds, given.shape[1])
        each = label_scores(given.numpy(), truth, shift.numpy())
        known = ~np.isnan(truth)
        wrong = known & ((given > shift).numpy() != (truth == 1))
        values = [
            mean_of([scores.ap for scores in each]),
            mean_of([scores.auroc for scores in each]),
            mean_of([scores.f1 for scores in each]),
            float((~wrong.any(axis=1)).mean()),
            float(wrong.sum() / max(known.sum(), 1)),
            float(self.losses(given, targets).mean()),
        ]
        return dict(zip(self.figure_names(given.shape[1]), values, strict=True))

    def in_words(self, outputs: Tensor, targets: Tensor) -> str:
        """The share of all answers that are right, and NLL."""
        right = 1 - self.held_out_loss(outputs, targets, "accuracy")
        return f"labels right {right:.4f}  nll {self.held_out_loss(outputs, targets, 'nll'):.4f}"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log likelihood in nats of an image's known answers, ``(..., N)``.

        Of an image of which more is known there are more: divided by how many are known of an
        image on average, so that the mean over images is the mean over all known answers.
        """
        given, truth = outputs.detach().cpu().double(), targets.cpu().double()
        known = ~truth.isnan()
        signs = torch.where(known, 2 * truth - 1, 0.0)
        answers = torch.where(known, -logsigmoid(signs * given), 0.0)
        return answers.sum(dim=-1) * (len(truth) / known.sum().clamp_min(1).double())

    def held_out_loss(self, outputs: Tensor, targets: Tensor, metric: Metric) -> float:
        """A mean over what is known."""
        return held_out_loss(*self.rows(outputs.detach().cpu(), targets.cpu()), metric)

    def mixture(self, member_outputs: Tensor, coefficients: Sequence[float]) -> Tensor:
        """Logits of the mean of the members' probabilities."""
        return self.outputs_of(categorical.log_mean(self.choices(member_outputs), coefficients))

    def choices(self, outputs: Tensor) -> Tensor:
        """No and yes, ``(..., K, 2)``, for each label."""
        return torch.stack([torch.zeros_like(outputs), outputs], dim=-1)

    def outputs_of(self, choices: Tensor) -> Tensor:
        """Yes against no."""
        return choices[..., 1] - choices[..., 0]

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each label of an image that is known."""
        known = ~targets.isnan()
        return self.choices(outputs)[..., known, :], targets[known].long()


def asymmetric(loss: Loss, negative_gamma: float) -> Loss:
    """A criterion of labels made asymmetric; 0: as it is.

    Raises:
        UsageError: one of another task.
    """
    if not negative_gamma:
        return loss
    if not isinstance(loss, BinaryLoss):
        raise UsageError(
            "Expected several labels an image for --model.negative_gamma, found another task; "
            "leave it out."
        )
    return BinaryLoss(
        label_smoothing=loss.label_smoothing,
        focal_gamma=loss.focal_gamma,
        negative_gamma=negative_gamma,
    )


def offsets(thresholds: Sequence[float] | None, outputs: int) -> Tensor:
    """The logits of thresholds, float64 ``(K,)``; 0 where none were chosen."""
    if thresholds is None:
        return torch.zeros(outputs, dtype=torch.float64)
    return torch.tensor(thresholds, dtype=torch.float64).logit()


def _floats(targets: Tensor) -> np.ndarray:
    return targets.cpu().double().numpy()


MULTILABEL = MultiLabel()
