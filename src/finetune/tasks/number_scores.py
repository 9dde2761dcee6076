"""Figures of numbers: MAE, RMSE, R2, Spearman's correlation, and their intervals over groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.tasks.class_scores import Floats

FIGURES = ("mae", "rmse", "r2", "spearman")
RESAMPLES = 1000
LEVEL = 0.95


def number_scores(answers: Floats, truth: Floats) -> dict[str, float]:
    """Of answers and truth ``(N,)``: errors in the user's unit, R2 and Spearman's correlation.

    R2 and Spearman's correlation are 0 where all numbers are equal: nothing can be told of them.
    """
    errors = answers - truth
    excess = truth - truth.mean()
    total = float(excess @ excess)
    values = (
        float(np.abs(errors).mean()),
        float(np.sqrt(np.mean(errors**2))),
        1 - float(errors @ errors) / total if total > 0 else 0.0,
        _correlation(_ranks(answers), _ranks(truth)),
    )
    return dict(zip(FIGURES, values, strict=True))


def score_intervals(
    answers: Floats, truth: Floats, groups: Sequence[int], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95 % percentile bootstrap interval of each figure; whole groups are drawn.

    Args:
        answers, truth: ``(N,)``.
        groups: ``(N,)``, equal for images that belong together, each its own otherwise.
        seed: of the draws.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(group_of == group) for group in range(group_of.max() + 1)]
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[group] for group in chosen])
        drawn.append(list(number_scores(answers[rows], truth[rows]).values()))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.asarray(drawn), [tail, 1 - tail], axis=0)
    return {
        name: (float(least), float(most))
        for name, least, most in zip(FIGURES, low, high, strict=True)
    }


def _ranks(values: Floats) -> Floats:
    """From 1, equal values at their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    one, other = first - first.mean(), second - second.mean()
    sizes = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / sizes if sizes > 0 else 0.0
