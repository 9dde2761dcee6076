"""Images that belong together, such as those of one patient, tell less than as many strangers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from finetune.evaluation.intervals import wilson_interval
from finetune.tasks.class_scores import Integers

MOSTLY_ALONE = 0.9  # groups an image, from which on an interval may as well count images


def clusters(groups: Integers | None) -> Integers | None:
    """The groups ``(N,)`` where they are clearly fewer than the images, else None."""
    if groups is None or len(np.unique(groups)) >= MOSTLY_ALONE * len(groups):
        return None
    return groups


def independent_images(
    right: NDArray[np.bool_], groups: Integers, *, confidence_level: float = 0.95
) -> float:
    """How many images, each of a group of its own, would tell as much of the share that is right.

    The variance of the share is that of a ratio over groups; as many independent images have it,
    and Student's quantile is that of the number of groups (Korn and Graubard 1998, "Confidence
    intervals for proportions with small expected number of positive counts estimated from survey
    data"). Where all or none are right, nothing varies: then as many as there are groups.

    Args:
        right: of each image ``(N,)``, at least one.
        groups: of each image ``(N,)``.
        confidence_level: of the interval that is to be made with it.

    Returns:
        Between 1 and N.
    """
    images, share = len(right), float(right.mean())
    _, of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(of).astype(np.float64)
    number = len(sizes)
    if number == 1 or share in (0.0, 1.0):
        return float(number)
    apart = np.bincount(of, weights=right) - share * sizes
    variance = number / (number - 1) * float(apart @ apart) / images**2
    # As if alone at best, as if each group were one image at worst.
    most = float(sizes @ sizes) / images
    widened = min(max(variance * images / (share * (1 - share)), 1.0), most)
    tail = (1 + confidence_level) / 2
    return max(images / widened * (norm.ppf(tail) / t.ppf(tail, number - 1)) ** 2, 1.0)


def share_interval(
    right: NDArray[np.bool_], groups: Integers | None = None, *, confidence_level: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of the share that is right, of as many images as are independent.

    Args:
        right: of each image ``(N,)``; of none, the interval is ``(0, 1)``.
        groups: of each image ``(N,)``; None: each stands alone.
        confidence_level: in ``(0, 1)``.
    """
    together, total = clusters(groups), float(len(right))
    if together is not None:
        total = independent_images(right, together, confidence_level=confidence_level)
    share = float(right.mean()) if len(right) else 0.0
    return wilson_interval(share * total, total, confidence_level=confidence_level)


def about_groups(right: NDArray[np.bool_], groups: Integers | None) -> str:
    """What to say of an interval that knows of groups, or nothing where there are hardly any."""
    together = clusters(groups)
    if together is None:
        return ""
    alone = math.floor(independent_images(right, together))
    return (
        f"These {len(together)} images are of {len(np.unique(together))} groups, and tell as much "
        f"of the accuracy as {alone} independent ones; the interval is that of so many."
    )
