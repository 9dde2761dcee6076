"""The final layer fitted properly for numbers: ridge regression in closed form.

For each fold the cross-products of the others are diagonalised once, after which any penalty costs
next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.tasks.regression import REGRESSION
from finetune.training.linear_probe import Probe
from finetune.training.penalty_search import FOLDS, all_dealt, stratified_parts
from finetune.training.probe_rows import ProbeRows, patient

# Penalties on the sum of the squares, from strong to weak by half decades (scikit-learn's alpha).
RIDGE_GRID = tuple(10 ** (step / 2) for step in range(14, -5, -1))


def fit_ridge_probe(
    features: Tensor,
    targets: Tensor,
    num_columns: int,
    *,
    sample_weights: Tensor | None = None,
    groups: Tensor | None = None,
    l2: float | Sequence[float] | None = None,
    seed: int = 0,
    held_out: bool = False,
    say: Callable[[str], None] | None = None,
) -> Probe:
    """Fit K columns of ``targets (N, K)`` on ``features (N, D)`` by least squares.

    Args:
        features: any floating dtype; the optimum is found in float64.
        targets: of the training images, standardised.
        num_columns: K; they share one penalty.
        sample_weights, groups, seed, held_out, say: as for
            :func:`finetune.training.linear_probe.fit_probe`.
        l2: one penalty on the sum of the squares (scikit-learn's ``alpha``), or several to choose
            from; by default from a grid. The strongest within one standard error of the best held-
            out squared error, that of groups, which are what is independent.

    Returns:
        With the mean squared error of each penalty as ``held_out_nll``, of which it is one for
        normal errors, but for a factor and a constant.

    Raises:
        TrainingError: features that are not finite.
    """
    prepared = ProbeRows.of(features, sample_weights, groups)
    rows, weights = prepared.rows, prepared.weights
    truth = targets.detach().cpu().double().reshape(len(rows), num_columns)
    scores: dict[float, float] = {}
    answers: Tensor | None = None
    if isinstance(l2, int | float):
        chosen = float(l2)
    else:
        grid = sorted(map(float, RIDGE_GRID if l2 is None else l2), reverse=True)
        found = _search(rows, truth, weights, prepared.groups, grid, seed)
        chosen, scores, answers = found.l2, found.scores, found.answers if held_out else None
        patient(say)(f"penalty {chosen:.3g} is taken")
    coefficients, intercept = _Solved(rows, truth, weights).at(chosen)
    weight, bias = prepared.for_raw(coefficients.T, intercept)
    return Probe(weight, bias, chosen, scores, held_out_logits=answers)


class _Solved:
    """Weighted least squares on ``rows (N, r)`` with an intercept, for any penalty."""

    def __init__(self, rows: Tensor, truth: Tensor, weights: Tensor) -> None:
        shares = weights / weights.sum()
        self.mean, self.level = shares @ rows, shares @ truth
        centred = rows - self.mean
        weighted = centred * weights[:, None]
        self.values, self.axes = torch.linalg.eigh(weighted.T @ centred)
        self.products = self.axes.T @ (weighted.T @ (truth - self.level))

    def at(self, l2: float) -> tuple[Tensor, Tensor]:
        """Coefficients ``(r, K)`` and the intercept ``(K,)``."""
        shrunk = self.products / (self.values.clamp_min(0) + l2)[:, None]
        coefficients = self.axes @ shrunk
        return coefficients, self.level - self.mean @ coefficients


class _Search(NamedTuple):
    """The penalty to take, the mean squared error of each, and held-out answers of the former."""

    l2: float
    scores: dict[float, float]
    answers: Tensor  # (N, K); NaN where there is one group


def _search(
    rows: Tensor, truth: Tensor, weights: Tensor, groups: Tensor, grid: Sequence[float], seed: int
) -> _Search:
    """Try all penalties; with one group the strongest is taken."""
    numbers = torch.unique(groups, return_inverse=True)[1]
    strata = torch.tensor(REGRESSION.strata(truth))
    fold_of = all_dealt(stratified_parts(strata, groups, FOLDS, seed), groups)
    answers = torch.full((len(grid), *truth.shape), torch.nan, dtype=torch.float64)
    for fold in torch.unique(fold_of).tolist():
        out = fold_of == fold
        if bool(out.all()):
            return _Search(grid[0], {}, answers[0])
        solved = _Solved(rows[~out], truth[~out], weights[~out])
        for index, l2 in enumerate(grid):
            coefficients, intercept = solved.at(l2)
            answers[index, out] = rows[out] @ coefficients + intercept
    squares = (answers - truth).square().mean(dim=2)
    shares = weights / weights.sum()
    means = squares @ shares
    excess = torch.zeros(len(grid), int(numbers.max()) + 1, dtype=torch.float64)
    excess.index_add_(1, numbers, (squares - means[:, None]) * shares)
    best = int(means.argmin())
    within = means <= means[best] + excess[best].norm()
    taken = int(within.nonzero()[0])
    scores = dict(zip(grid, means.tolist(), strict=True))
    return _Search(grid[taken], scores, answers[taken])
