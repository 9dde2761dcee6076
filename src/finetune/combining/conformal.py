"""Prediction sets that hold the true class with a chosen probability, for any classifier.

Split conformal prediction: the threshold is the ``ceil((n + 1) (1 - alpha))``-th smallest of the
scores of n held-out images, and the set of a new image holds the classes that score no more. If
the new image is exchangeable with those n, the set misses the truth with probability at most alpha.

Sources: Sadinle et al., Least ambiguous set-valued classifiers, 2019 (THR); Romano et al.,
Classification with valid and adaptive coverage, 2020 (APS); Angelopoulos et al., Uncertainty sets
for image classifiers using conformal prediction, 2021 (RAPS); Angelopoulos et al., Conformal risk
control, 2022 (several labels an image).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from finetune.errors import CalibrationError
from finetune.spec.choices import SetScore as Score
from finetune.tasks import categorical


@dataclass(frozen=True, slots=True)
class ConformalRule:
    """How to turn probabilities into sets.

    Attributes:
        score: ``thr`` gives the smallest sets on average; ``aps`` adapts their size to the image,
            ``raps`` does so without the long tail.
        alpha: accepted share of sets without the true class, in (0, 1).
        threshold: largest score in a set; infinite when n is too small for alpha, and then a set
            holds every class.
        images: n.
        penalty, free_classes: of ``raps``: what each class after the first few adds to a score.
        always_top: put the likeliest class into a set that would be empty.
        of_labels: of several labels an image, alpha is the accepted share of true labels that a
            set lacks, on average over images.
    """

    score: Score
    alpha: float
    threshold: float
    images: int
    penalty: float = 0.01
    free_classes: int = 2
    always_top: bool = False
    of_labels: bool = False

    def sets(self, probabilities: Tensor) -> Tensor:
        """Membership ``(N, C)`` (bool) for probabilities ``(N, C)``."""
        scores = conformal_scores(
            probabilities, self.score, penalty=self.penalty, free_classes=self.free_classes
        )
        members = scores <= self.threshold
        if self.always_top:
            members = members.scatter(-1, categorical.likeliest(probabilities).unsqueeze(-1), True)
        return members


def fit_conformal(
    probabilities: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.1,
    score: Score = "thr",
) -> ConformalRule:
    """Fit the sets' threshold on held-out probabilities ``(N, C)`` and labels ``(N,)``.

    Raises:
        CalibrationError: alpha outside (0, 1), or no images.
    """
    if len(labels) == 0 or probabilities.shape[0] != labels.shape[0]:
        raise CalibrationError(
            f"Expected labelled held-out images, found {probabilities.shape[0]} rows for "
            f"{len(labels)} labels; hold out some."
        )
    scores = conformal_scores(probabilities, score)
    true_scores = scores.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return ConformalRule(score, alpha, conformal_quantile(true_scores, alpha), len(labels))


def fit_label_sets(probabilities: Tensor, targets: Tensor, *, alpha: float) -> ConformalRule:
    """The highest threshold at which at most a share alpha of the true labels is missed.

    An image's loss is the share of its known true labels that its set lacks; 0 without one. It
    rises with the threshold and is at most 1. So with n held-out images of mean loss R(t), the
    highest t with ``(n R(t) + 1) / (n + 1) <= alpha`` keeps the expected loss of a new image at
    alpha or below, if it is exchangeable with those n. Where n is too small, sets hold all labels.

    Source: Angelopoulos et al., Conformal risk control, 2022, theorem 1.

    Args:
        probabilities: ``(N, K)``.
        targets: ``(N, K)``: 1, 0, or NaN where it is not known.
        alpha: in (0, 1).

    Raises:
        CalibrationError: alpha outside (0, 1), or no images.
    """
    _check_alpha(alpha)
    if len(targets) == 0:
        raise CalibrationError("Expected labelled held-out images, found none; hold out some.")
    has = targets == 1
    share = has.double() / has.sum(dim=-1, keepdim=True).clamp_min(1)
    scores, order = (1 - probabilities.detach().double())[has].sort(descending=True)
    # Loss of all images when this label is missed with all that score more.
    lost = share[has][order].cumsum(dim=0)
    allowed = alpha * (len(targets) + 1) - 1 + 1e-9
    if allowed < 0:
        threshold = math.inf
    else:
        missed = int((lost <= allowed).sum())
        while 0 < missed < len(scores) and scores[missed - 1] == scores[missed]:
            missed -= 1  # equals are missed together
        threshold = float(scores[missed]) if missed < len(scores) else -1.0
    return ConformalRule("thr", alpha, threshold, images=len(targets), of_labels=True)


def conformal_quantile(scores: Tensor, alpha: float) -> float:
    """The ``ceil((n + 1) (1 - alpha))``-th smallest of ``(n,)`` scores, infinite beyond n.

    Raises:
        CalibrationError: alpha outside (0, 1).
    """
    _check_alpha(alpha)
    count = len(scores)
    # Rounded first: (9 + 1) * (1 - 0.1) is 9.000000000000002 in floating point.
    rank = math.ceil(round((count + 1) * (1 - alpha), 9))
    return math.inf if rank > count else float(scores.double().sort().values[rank - 1])


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise CalibrationError(
            f"Expected alpha in (0, 1), found {alpha}; 0.1 asks for sets that hold the truth in "
            "nine of ten images."
        )


def conformal_scores(
    probabilities: Tensor, score: Score, *, penalty: float = 0.01, free_classes: int = 2
) -> Tensor:
    """How strange each class would be, ``(N, C)`` in float64; low is likely.

    ``thr`` is ``1 - p``; ``aps`` the probability of all classes at least as likely, this one
    included (not randomised, so sets err on the large side); ``raps`` adds ``penalty`` for each
    class beyond the first ``free_classes``.
    """
    values = probabilities.detach().double()
    match score:
        case "thr":
            return 1 - values
        case "aps":
            return _cumulative(values)
        case "raps":
            ranks = values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1
            return _cumulative(values) + penalty * (ranks - free_classes).clamp_min(0)
        case _:
            assert_never(score)


def _cumulative(values: Tensor) -> Tensor:
    order = values.argsort(dim=-1, descending=True, stable=True)
    sums = values.gather(-1, order).cumsum(dim=-1)
    return torch.empty_like(values).scatter(-1, order, sums)
