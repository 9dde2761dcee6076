"""The final layer fitted properly: multinomial logistic regression on features.

Features are standardised, the L2 penalty is chosen by cross-validation over a logarithmic grid,
and the standardisation is folded back, so that the result is a plain final layer for raw features.
As the strategy ``head`` this is the whole fit; otherwise it is where fine-tuning starts (linear
probing, then fine-tuning: Kumar et al. 2022).

Each feature is divided by its spread mixed in equal parts with the mean spread of all features
(root of the mean square). By its own alone, a feature that hardly varies in training gets a weight
of tens of thousands, and one image in which it does vary an answer that is absurd and sure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.errors import TrainingError
from finetune.training.logistic_regression import logistic_problem, solve_logistic
from finetune.training.penalty_search import L2_GRID, PenaltySearch

# A fit that takes longer says where it is.
QUIET_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted final layer for raw features: ``logits = features @ weight.T + bias``.

    Attributes:
        weight, bias: float64, ``(C, D)`` and ``(C,)``.
        l2: the penalty on the sum of the (weighted) losses, chosen or given. Chosen is the
            strongest one within one standard error of the best (Breiman et al. 1984): on little
            data the curve is flat, and the stronger penalty is the better calibrated.
        held_out_nll: mean negative log-likelihood over the held-out folds for each penalty tried;
            empty where the penalty was given.
        l2_of_labels: of several labels an image, one each, where that is better; else None.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    held_out_nll: dict[float, float] = field(default_factory=dict)
    l2_of_labels: tuple[float, ...] | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` in float64 for raw features ``(N, D)``."""
        return features.to(self.weight) @ self.weight.T + self.bias


def fit_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    sample_weights: Tensor | None = None,
    groups: Tensor | None = None,
    l2: float | Sequence[float] | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Probe:
    """Fit the final layer on ``features (N, D)`` and ``labels (N,)``.

    How far one feature can move an answer is bounded. With the mean spread of the features m, a
    feature that moves by ``t * m`` changes no logit by more than ``2 * t * sqrt(N * log(C) / l2)``,
    nor that of class c by more than ``2 * t * N_c * r / l2``, where N_c is the (weighted) number of
    images of class c and ``r * m`` the range of the feature in training: what never varied there
    counts for nothing, however far it moves later.

    Args:
        features: any floating dtype; the optimum is found in float64.
        labels: int64 in ``[0, num_classes)``.
        num_classes: C; a class without an image gets a small constant probability.
        sample_weights: ``(N,)``, >= 0; only their ratios matter. Class weights go in here.
        groups: ``(N,)`` integers; rows of one group (the views of one image, near-duplicates)
            are never split between folds. Default: every row its own.
        l2: one penalty, or several to choose from by 5-fold cross-validation (see
            :mod:`finetune.training.penalty_search`). Default: the decades of its ``L2_GRID``, then
            the half decades around the best.
        seed: of the assignment to folds, the only random thing here.
        say: gets a line for each penalty once the fit has taken a few seconds.

    Raises:
        TrainingError: features that are not finite, or fewer than two classes with images.
    """
    rows = features.detach().to("cpu", torch.float64)
    labels = labels.detach().cpu()
    _check(rows, labels, num_classes)
    tell = patient(say)
    present = torch.unique(labels)
    dense = torch.searchsorted(present, labels)
    weights = mean_one(sample_weights, len(rows))
    mean, spread = rows.mean(dim=0), mixed_spreads(rows)
    projected, axes = principal_axes((rows - mean) / spread)

    held_out_nll: dict[float, float] = {}
    if isinstance(l2, int | float):
        chosen = float(l2)
    else:
        own = torch.arange(len(rows)) if groups is None else groups
        search = PenaltySearch(projected, dense, weights, own, len(present), seed=seed, tell=tell)
        search.search(L2_GRID if l2 is None else l2, refine=l2 is None)
        held_out_nll, chosen = search.scores, search.strongest_within_one_standard_error()
        tell(f"penalty {chosen:.3g} is taken; fitting {len(rows)} rows, {len(present)} classes")
    problem = logistic_problem(projected, dense, weights, len(present))
    coefficients = solve_logistic(problem, chosen)
    weight = coefficients[:, :-1] @ axes.T / spread
    bias = coefficients[:, -1] - weight @ mean
    weight, bias = _with_absent_classes(weight, bias, rows, present, num_classes)
    return Probe(weight, bias, chosen, held_out_nll)


def mixed_spreads(rows: Tensor) -> Tensor:
    """Standard deviations ``(D,)``, each mixed in equal parts with their mean; 1 if all are 0."""
    spread = rows.std(dim=0, correction=0)
    common = spread.mean()
    if not common > 0:
        return torch.ones_like(spread)
    return ((spread.square() + common.square()) / 2).sqrt()


def patient(say: Callable[[str], None] | None) -> Callable[[str], None]:
    """Passes lines on once the fit has taken a few seconds."""
    started = time.monotonic()

    def tell(line: str) -> None:
        seconds = time.monotonic() - started
        if say is not None and seconds > QUIET_SECONDS:
            say(f"final layer: {line} ({seconds:.0f} s)")

    return tell


def _check(rows: Tensor, labels: Tensor, num_classes: int) -> None:
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"Expected features (N, D) and labels (N,), found {tuple(rows.shape)} and "
            f"{tuple(labels.shape)}."
        )
    check_features(rows)
    found = torch.unique(labels).tolist()
    if len(found) < 2 or found[0] < 0 or found[-1] >= num_classes:
        raise TrainingError(
            f"Expected training images of at least two of {num_classes} classes, found labels "
            f"{found[:5]}; add images or check the split."
        )


def check_features(rows: Tensor) -> None:
    """Refuse features that are not finite.

    Raises:
        TrainingError: the backbone's answer holds NaN or infinity.
    """
    if not bool(rows.isfinite().all()):
        raise TrainingError(
            "Expected finite features, found NaN or infinity; the backbone's weights or its "
            "precision are at fault: try precision 32-true or other pretrained weights."
        )


def mean_one(sample_weights: Tensor | None, count: int) -> Tensor:
    """Weights ``(count,)`` in float64 with a mean of 1; None: all alike."""
    if sample_weights is None:
        return torch.ones(count, dtype=torch.float64)
    weights = sample_weights.detach().to("cpu", torch.float64)
    if weights.shape != (count,) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise ValueError("Expected one weight >= 0 a sample, with a positive sum.")
    return weights / weights.mean()


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(N, r)`` in their principal axes, and the axes ``(D, r)``; ``r <= min(N, D)``.

    The penalty does not see a rotation, and the optimum has no part outside the span of the rows:
    the problem is the same, and smaller where there are fewer images than features.
    """
    count, width = rows.shape
    if count < width:
        values, left = torch.linalg.eigh(rows @ rows.T)
        keep = values > 1e-11 * values[-1]
        roots = values[keep].sqrt()
        return left[:, keep] * roots, rows.T @ (left[:, keep] / roots)
    values, axes = torch.linalg.eigh(rows.T @ rows)
    axes = axes[:, values > 1e-11 * values[-1]]
    return rows @ axes, axes


def _with_absent_classes(
    weight: Tensor, bias: Tensor, rows: Tensor, present: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Adds classes without an image: about one image's worth of probability everywhere."""
    if len(present) == num_classes:
        return weight, bias
    typical = float((rows @ weight.T + bias).logsumexp(dim=1).mean())
    full_weight = weight.new_zeros(num_classes, weight.shape[1])
    full_bias = bias.new_full((num_classes,), typical - math.log(len(rows) + 1))
    full_weight[present], full_bias[present] = weight, bias
    return full_weight, full_bias
