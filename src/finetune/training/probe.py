"""The final layer fitted properly: multinomial logistic regression on features.

Features are standardised, the L2 penalty is chosen by cross-validation over a logarithmic grid,
and the standardisation is folded back, so that the result is a plain final layer for raw features.
As the strategy ``head`` this is the whole fit; otherwise it is where fine-tuning starts (linear
probing, then fine-tuning: Kumar et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.errors import TrainingError
from finetune.training.logistic import LogisticProblem, logistic_problem, solve_logistic

# Penalties on the sum of the losses (scikit-learn's 1 / C), from strong to weak.
L2_GRID = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)
# Beyond this many rows the penalty is chosen on a stratified part, and fitted on everything.
MAX_ROWS_FOR_CROSS_VALIDATION = 2000


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
    """

    weight: Tensor
    bias: Tensor
    l2: float
    held_out_nll: dict[float, float] = field(default_factory=dict)

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
) -> Probe:
    """Fit the final layer on ``features (N, D)`` and ``labels (N,)``.

    Args:
        features: any floating dtype; the optimum is found in float64.
        labels: int64 in ``[0, num_classes)``.
        num_classes: C; a class without a picture gets a small constant probability.
        sample_weights: ``(N,)``, >= 0; only their ratios matter. Class weights go in here.
        groups: ``(N,)`` integers; rows of one group (the views of one picture, near-duplicates)
            are never split between folds. Default: every row its own.
        l2: one penalty, or several to choose from by 5-fold cross-validation. Default: the decades
            of :data:`L2_GRID`, then the half decades around the best.
        seed: of the assignment to folds, the only random thing here.

    Raises:
        TrainingError: features that are not finite, or fewer than two classes with pictures.
    """
    rows = features.detach().to("cpu", torch.float64)
    labels = labels.detach().cpu()
    _check(rows, labels, num_classes)
    present = torch.unique(labels)
    dense = torch.searchsorted(present, labels)
    weights = _mean_one(sample_weights, len(rows))
    mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)
    # A constant feature cannot help; divided by one it stays at zero.
    std = torch.where(std > 1e-9 * (1 + mean.abs()), std, torch.ones_like(std))
    projected, axes = _principal_axes((rows - mean) / std)

    held_out_nll: dict[float, float] = {}
    if isinstance(l2, int | float):
        chosen = float(l2)
    else:
        folds = _Folds(projected, dense, weights, groups, seed)
        folds.search(L2_GRID if l2 is None else l2, refine=l2 is None)
        held_out_nll, chosen = folds.scores, folds.strongest_within_one_standard_error()
    problem = logistic_problem(projected, dense, weights, len(present))
    coefficients = solve_logistic(problem, chosen)
    weight = (axes @ coefficients[:-1]).T / std
    bias = coefficients[-1] - weight @ mean
    weight, bias = _with_absent_classes(weight, bias, rows, present, num_classes)
    return Probe(weight, bias, chosen, held_out_nll)


class _Folds:
    """Cross-validation: held-out NLL as a function of the penalty."""

    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        weights: Tensor,
        groups: Tensor | None,
        seed: int,
        folds: int = 5,
    ) -> None:
        parts = folds * math.ceil(len(rows) / MAX_ROWS_FOR_CROSS_VALIDATION)
        part_of = _stratified_parts(labels, groups, parts, seed)
        used = part_of < folds
        self.rows, self.labels, self.weights = rows[used], labels[used], weights[used]
        self.fold_of = part_of[used]
        self.problems: dict[int, LogisticProblem] = {}
        self.solutions: dict[int, Tensor] = {}
        self.scores: dict[float, float] = {}
        self.standard_errors: dict[float, float] = {}
        for fold in range(folds):
            rest = self.fold_of != fold
            if not bool(rest.all()):
                self.problems[fold] = logistic_problem(
                    self.rows[rest], self.labels[rest], self.weights[rest], int(labels.max()) + 1
                )

    def search(self, grid: Sequence[float], *, refine: bool) -> None:
        """Try penalties from strong to weak until two in a row are worse than the best so far."""
        for l2 in sorted(map(float, grid), reverse=True):
            self._try(l2)
            values = list(self.scores.values())
            if len(values) > 2 and min(values[:-2]) < min(values[-2:]):
                break
        if refine:
            best = self._best()
            for l2 in (best * 10**0.5, best / 10**0.5):
                self._try(l2)

    def strongest_within_one_standard_error(self) -> float:
        """The penalty to take."""
        best = self._best()
        bound = self.scores[best] + self.standard_errors[best]
        return max(l2 for l2, nll in self.scores.items() if nll <= bound)

    def _best(self) -> float:
        return min(self.scores, key=lambda l2: self.scores[l2])

    def _try(self, l2: float) -> None:
        losses = torch.zeros(len(self.rows), dtype=torch.float64)
        for fold, problem in self.problems.items():
            # Far looser than the final fit: the NLL is flat around the optimum.
            coefficients = solve_logistic(
                problem, l2, tolerance=3e-3, start=self.solutions.get(fold)
            )
            self.solutions[fold] = coefficients
            out = self.fold_of == fold
            logits = self.rows[out] @ coefficients[:-1] + coefficients[-1]
            losses[out] = cross_entropy(logits, self.labels[out], reduction="none")
        out = self.fold_of >= 0
        weights = self.weights[out] / self.weights[out].sum()
        mean = float(weights @ losses[out])
        self.scores[l2] = mean
        self.standard_errors[l2] = float((weights * (losses[out] - mean)).norm())


def _check(rows: Tensor, labels: Tensor, num_classes: int) -> None:
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"Expected features (N, D) and labels (N,), found {tuple(rows.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not bool(rows.isfinite().all()):
        raise TrainingError(
            "Expected finite features, found NaN or infinity; the backbone's weights or its "
            "precision are at fault: try precision 32-true or other pretrained weights."
        )
    found = torch.unique(labels).tolist()
    if len(found) < 2 or found[0] < 0 or found[-1] >= num_classes:
        raise TrainingError(
            f"Expected training pictures of at least two of {num_classes} classes, found labels "
            f"{found[:5]}; add pictures or check the split."
        )


def _mean_one(sample_weights: Tensor | None, count: int) -> Tensor:
    if sample_weights is None:
        return torch.ones(count, dtype=torch.float64)
    weights = sample_weights.detach().to("cpu", torch.float64)
    if weights.shape != (count,) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise ValueError("Expected one weight >= 0 a sample, with a positive sum.")
    return weights / weights.mean()


def _principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(N, r)`` in their principal axes, and the axes ``(D, r)``; ``r <= min(N, D)``.

    The penalty does not see a rotation, and the optimum has no part outside the span of the rows:
    the problem is the same, and smaller where there are fewer pictures than features.
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


def _stratified_parts(labels: Tensor, groups: Tensor | None, parts: int, seed: int) -> Tensor:
    """Part of each row, whole groups only; -1 (never held out) where a class has one group."""
    generator = np.random.default_rng(seed)
    ids = np.arange(len(labels)) if groups is None else groups.cpu().numpy()
    _, first, group_of = np.unique(ids, return_index=True, return_inverse=True)
    group_labels = labels.numpy()[first]
    part_of_group = np.full(len(first), -1)
    for label in np.unique(group_labels):
        members = generator.permutation(np.flatnonzero(group_labels == label))
        if len(members) > 1:
            dealt = int((part_of_group >= 0).sum())
            part_of_group[members] = (dealt + np.arange(len(members))) % parts
    return torch.from_numpy(part_of_group[group_of])


def _with_absent_classes(
    weight: Tensor, bias: Tensor, rows: Tensor, present: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Adds classes without a picture: about one picture's worth of probability everywhere."""
    if len(present) == num_classes:
        return weight, bias
    typical = float((rows @ weight.T + bias).logsumexp(dim=1).mean())
    full_weight = weight.new_zeros(num_classes, weight.shape[1])
    full_bias = bias.new_full((num_classes,), typical - math.log(len(rows) + 1))
    full_weight[present], full_bias[present] = weight, bias
    return full_weight, full_bias
