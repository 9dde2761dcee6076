"""Two sets of answers to the same images: how far apart, and whether by chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune.errors import UsageError
from finetune.evaluation.clusters import clusters
from finetune.evaluation.intervals import bootstrap_counts, bootstrap_interval, percentile_interval
from finetune.tasks.class_scores import Floats, Integers

Rights = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two figures.

    Attributes:
        first_only, second_only: images that only one of the two gets right.
        value: the first figure minus the second.
        interval: paired bootstrap interval of it.
        p_value: of "both are equally good".
    """

    first_only: int
    second_only: int
    value: float
    interval: tuple[float, float]
    p_value: float


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar test from the numbers of images that only one side gets right."""
    discordant = first_only + second_only
    return 1.0 if discordant == 0 else float(binomtest(first_only, discordant, 0.5).pvalue)


def accuracy_difference(
    first: Rights,
    second: Rights,
    *,
    groups: Integers | None = None,
    confidence_level: float = 0.95,
) -> Difference:
    """Of the shares of right answers ``(N,)``, by McNemar's exact test.

    It takes images for independent. Of images in groups ``(N,)``, such as those of one patient,
    groups are drawn instead, by a bootstrap.

    Raises:
        UsageError: answers to other images, or to none.
    """
    if first.shape != second.shape or len(first) == 0:
        raise UsageError(
            f"Expected answers to the same images, found {len(first)} and {len(second)}."
        )
    if (together := clusters(groups)) is not None:
        counts = bootstrap_counts(together, len(first))
        images = counts.sum(axis=1)
        return resampled_difference(
            (float(first.mean()), float(second.mean())),
            (counts @ first / images, counts @ second / images),
            (first, second),
            confidence_level=confidence_level,
        )
    difference = first.astype(np.int64) - second.astype(np.int64)
    first_only, second_only = int((difference > 0).sum()), int((difference < 0).sum())
    return Difference(
        first_only,
        second_only,
        value=float(difference.mean()),
        interval=bootstrap_interval(difference, confidence_level=confidence_level),
        p_value=mcnemar_p_value(first_only, second_only),
    )


def resampled_difference(
    figures: tuple[float, float],
    resampled: tuple[Floats, Floats],
    rights: tuple[Rights, Rights],
    *,
    confidence_level: float = 0.95,
) -> Difference:
    """Of any two figures, by a bootstrap.

    The p-value is twice the share of the resamples in which the lesser one leads: what the interval
    that just touches zero leaves out. It is never 0, for no number of resamples shows that.

    Args:
        figures: on all images.
        resampled: on R resamples, the same for both, ``(R,)`` each.
        rights: images that each gets right as a whole, ``(N,)``.
        confidence_level: of the interval.
    """
    apart = resampled[0] - resampled[1]
    least = min(int((apart <= 0).sum()), int((apart >= 0).sum()))
    return Difference(
        first_only=int((rights[0] & ~rights[1]).sum()),
        second_only=int((rights[1] & ~rights[0]).sum()),
        value=figures[0] - figures[1],
        interval=percentile_interval(apart, confidence_level=confidence_level),
        p_value=min(1.0, 2 * (least + 1) / (len(apart) + 1)),
    )
