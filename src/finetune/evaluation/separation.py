"""How well one number an image tells strangers from known images: AUROC, with its interval.

Source of the variance: DeLong et al., Comparing the areas under two or more correlated ROC curves,
1988, here as the influence of each image, so that differences of scores are paired.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from finetune.evaluation.intervals import wilson_interval

Floats = NDArray[np.float64]


class Separation(NamedTuple):
    """The area under the ROC curve, and how much of its error each image brings.

    Attributes:
        auroc: share of the pairs of a stranger and a known image in which the stranger scores
            higher; ties count half.
        strangers, known: influence of each image ``(m,)`` and ``(n,)``: the sum of their squares is
            the variance, that of the differences of two scores' influences the variance of the
            difference.
    """

    auroc: float
    strangers: Floats
    known: Floats


def separation(strangers: Floats, known: Floats) -> Separation:
    """AUROC of scores that ought to be higher for strangers ``(m,)`` than for known ``(n,)``.

    Raises:
        ValueError: no strangers, or no known images.
    """
    if not len(strangers) or not len(known):
        raise ValueError(f"Expected images, found {len(strangers)} strange, {len(known)} known.")
    above = _share_below(strangers, known)
    below = 1 - _share_below(known, strangers)
    area = float(above.mean())
    return Separation(area, (above - area) / len(strangers), (below - area) / len(known))


def auroc_interval(auroc: float, variance: float, images: int) -> tuple[float, float]:
    """Its normal 95 % interval within ``[0, 1]``.

    Where no two images overlap the variance says nothing: then Wilson's interval, as if so many
    ``images``, the fewer of strangers and known, had all been told apart; or, where all score the
    same, the whole of it.
    """
    if variance <= 0 and auroc == 0.5:
        return 0.0, 1.0
    if variance <= 0:
        low, high = wilson_interval(images, images)
        return (low, high) if auroc > 0.5 else (1 - high, 1 - low)
    half = float(norm.ppf(0.975)) * math.sqrt(variance)
    return max(0.0, auroc - half), min(1.0, auroc + half)


def _share_below(values: Floats, others: Floats) -> Floats:
    """For each value the share of the others that are lower, ties half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(ordered))
