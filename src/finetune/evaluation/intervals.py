"""Confidence intervals for figures that come from few images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

RESAMPLES = 1000
MOST_COUNTS = 20_000_000


def wilson_interval(
    correct: float, total: float, *, confidence_level: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval of a proportion, both ends in ``[0, 1]``.

    Unlike the textbook's plus-minus it stays sensible for 0 or ``total`` correct answers and for
    few images (Wilson 1927; Brown, Cai and DasGupta 2001). No images at all: ``(0, 1)``. Numbers
    of images need not be whole: those that are independent may be of no whole number.

    Raises:
        ValueError: unless ``0 <= correct <= total`` and ``0 < confidence_level < 1``.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"Expected 0 <= correct <= total, found {correct} of {total}.")
    _check_level(confidence_level)
    if total == 0:
        return 0.0, 1.0
    share, z = correct / total, float(norm.ppf((1 + confidence_level) / 2))
    centre = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    low, high = ((centre + side) / (1 + z**2 / total) for side in (-half, half))
    return (low if correct > 0 else 0.0), (high if correct < total else 1.0)


def bootstrap_interval(
    values: NDArray[Any],
    *,
    confidence_level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one number an image, ``values (N,)``.

    Images are drawn with replacement. Only how often each distinct value is drawn matters, so one
    multinomial draw over the distinct values stands for ``N`` draws of images: exact, and quick for
    right-or-wrong answers.

    Raises:
        ValueError: no values, or a level outside ``(0, 1)``.
    """
    _check_level(confidence_level)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(distinct) == 0:
        raise ValueError("Expected at least one value to resample, found none.")
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    return percentile_interval(draws @ distinct / total, confidence_level=confidence_level)


def resampled_counts(
    groups: NDArray[np.int64] | None, images: int, *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """How often each image is drawn ``(R, N)``: groups ``(N,)`` are drawn with replacement, whole.

    Images of one patient or burst are not independent, so an interval of single images would be
    too narrow (Field and Welsh 2007, cluster bootstrap).
    """
    own = np.arange(images) if groups is None else groups
    _, first, of = np.unique(own, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))  # what a group is called makes no difference
    count = len(first)
    chance = np.full(count, 1 / count)
    draws = np.random.default_rng(seed).multinomial(count, chance, size=resamples)
    return draws[:, in_order[of.reshape(-1)]].astype(np.float64)


def bootstrap_counts(
    groups: NDArray[np.int64] | None, images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Rows of :func:`resampled_counts`; down to a fifth of them, where they took the memory."""
    affordable = max(resamples // 5, MOST_COUNTS // images)
    return resampled_counts(groups, images, resamples=min(resamples, affordable), seed=seed)


def percentile_interval(
    resampled: NDArray[np.float64], *, confidence_level: float = 0.95
) -> tuple[float, float]:
    """The central ``confidence_level`` share of a figure's values ``(R,)`` over resamples."""
    _check_level(confidence_level)
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def _check_level(confidence_level: float) -> None:
    if not 0 < confidence_level < 1:
        raise ValueError(f"Expected a confidence level in (0, 1), found {confidence_level}.")
