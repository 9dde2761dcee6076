"""Figures of numbers: MAE, RMSE, R2, Spearman's correlation, of images that count once or more."""

from __future__ import annotations

import numpy as np

from finetune.tasks.class_scores import Floats

FIGURES = ("mae", "rmse", "r2", "spearman")


def number_scores(answers: Floats, truth: Floats) -> dict[str, float]:
    """Of answers and truth ``(N,)``: errors in the user's unit, R2 and Spearman's correlation.

    R2 and Spearman's correlation are 0 where all numbers are equal: nothing can be told of them.
    """
    (row,) = weighted_number_scores(answers, truth, np.ones((1, len(truth)))).tolist()
    return dict(zip(FIGURES, row, strict=True))


def weighted_number_scores(answers: Floats, truth: Floats, weights: Floats) -> Floats:
    """The same ``(R, 4)`` where images count as often as ``weights (R, N)`` say, >= 0."""
    images = weights.sum(axis=1)
    errors = answers - truth
    squares = weights @ errors**2
    middle = truth - truth.mean()  # so that squares of it lose no digits
    total = weights @ middle**2 - (weights @ middle) ** 2 / images
    alike = np.isclose(total, 0, atol=1e-12 * float(middle @ middle))
    explained = 1 - squares / np.where(alike, 1, total)
    return np.stack(
        [
            weights @ np.abs(errors) / images,
            np.sqrt(squares / images),
            np.where(alike, 0, explained),
            _correlation(_ranks(answers, weights), _ranks(truth, weights), weights),
        ],
        axis=1,
    )


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Ranks ``(R, N)``, each image standing as often as it counts; equal values at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    of_value = np.add.reduceat(weights[:, np.argsort(inverse, kind="stable")], first, axis=1)
    ranks: Floats = (np.cumsum(of_value, axis=1) - (of_value - 1) / 2)[:, inverse]
    return ranks


def _correlation(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Pearson's of ranks, ``(R,)``; 0 where one of them is the same everywhere."""
    images = weights.sum(axis=1, keepdims=True)
    one, other = (
        each - (weights * each).sum(axis=1, keepdims=True) / images for each in (first, second)
    )
    sizes = np.sqrt((weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1))
    products = (weights * one * other).sum(axis=1)
    # Ranks differ by halves: below that is rounding.
    found: Floats = np.divide(products, sizes, out=np.zeros(len(weights)), where=sizes > 0.1)
    return found
