"""Answers to images with a number each, and their figures: intervals are of a bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.intervals import bootstrap_counts, percentile_interval, wilson_interval
from finetune.evaluation.judgement import FEW_IMAGES, Interval, readable
from finetune.spec.numbers import quantile_bins
from finetune.tasks.class_scores import Floats, Integers
from finetune.tasks.number_scores import FIGURES, number_scores, weighted_number_scores

MOST_NUMBERS = 4_000_000  # of ranks at a time


@dataclass(frozen=True, eq=False)
class NumberAnswers:
    """One set of answers to one set of images, with a number each, and their figures.

    Attributes:
        targets, outputs: ``(N, 1)``, in the user's unit.
        class_names: the column's name alone.
        paths: of the N images.
        half_width: of the interval about each answer, in the user's unit; None without.
        groups: ``(N,)``; images of one number are drawn together. None: each alone.
        fold_errors: MAE of each fold, if there are folds.
    """

    targets: Floats = field(repr=False)
    outputs: Floats = field(repr=False)
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = field(repr=False)
    half_width: float | None = None
    groups: Integers | None = field(default=None, repr=False)
    fold_errors: tuple[float, ...] = ()
    confidence_level: float = 0.95

    @property
    def truth(self) -> Floats:
        """``(N,)``."""
        return self.targets[:, 0]

    @property
    def answers(self) -> Floats:
        """``(N,)``."""
        return self.outputs[:, 0]

    @property
    def residuals(self) -> Floats:
        """Answer less truth, ``(N,)``: above 0 where the answer is too high."""
        return self.answers - self.truth

    @property
    def losses(self) -> Floats:
        """Absolute errors ``(N,)``."""
        return np.abs(self.residuals)

    @cached_property
    def figures(self) -> dict[str, float]:
        """Of the whole, as every other room has them."""
        return number_scores(self.answers, self.truth)

    @cached_property
    def counts(self) -> Floats:
        """How often the bootstrap draws each image, ``(R, N)``."""
        return bootstrap_counts(self.groups, len(self.paths))

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of the figures of the whole, by their names."""
        rows = max(1, MOST_NUMBERS // len(self.paths))
        parts = np.array_split(self.counts, -(-len(self.counts) // rows))
        drawn = np.concatenate(
            [weighted_number_scores(self.answers, self.truth, part) for part in parts]
        )
        level = self.confidence_level
        return {
            name: percentile_interval(column, confidence_level=level)
            for name, column in zip(FIGURES, drawn.T, strict=True)
        }

    @property
    def held(self) -> tuple[float, Interval] | None:
        """The share of the images whose number lies inside its interval, with its own interval."""
        return self._held(np.ones(len(self.paths), dtype=bool))

    def _held(self, images: NDArray[np.bool_]) -> tuple[float, Interval] | None:
        """The same of some images."""
        if self.half_width is None:
            return None
        inside, total = int((self.losses[images] <= self.half_width).sum()), int(images.sum())
        ends = wilson_interval(inside, total, confidence_level=self.confidence_level)
        return inside / total, ends

    @cached_property
    def ranges(self) -> list[dict[str, Any]]:
        """Figures of the images of each part of the range, from the smallest numbers up.

        ``bias`` is the mean of answer less truth: at both ends answers are drawn to the middle.
        """
        bins = np.array(quantile_bins(self.truth.tolist()))
        return [self._of_range(bins == part) for part in np.unique(bins)]

    def _of_range(self, images: NDArray[np.bool_]) -> dict[str, Any]:
        held = self._held(images)
        counts = self.counts[:, images]
        drawn = counts.sum(axis=1) > 0
        errors = counts[drawn] @ self.losses[images] / counts[drawn].sum(axis=1)
        low, high = percentile_interval(errors, confidence_level=self.confidence_level)
        return {
            "from": float(self.truth[images].min()),
            "to": float(self.truth[images].max()),
            "support": int(images.sum()),
            "mae": float(self.losses[images].mean()),
            "mae_low": low,
            "mae_high": high,
            "bias": float(self.residuals[images].mean()),
            "inside": None if held is None else held[0],
            "few_images": int(images.sum()) < FEW_IMAGES,
        }


def range_name(row: Mapping[str, Any]) -> str:
    """The ends of a part of the range."""
    return " to ".join(readable(row[end], "amount") for end in ("from", "to"))


def shown_number(value: float) -> str:
    """With six digits, as the task names it."""
    return f"{value:.6g}"
