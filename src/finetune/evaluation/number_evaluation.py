"""What is told of a number an image: to a page, a table, a leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune.errors import UsageError
from finetune.evaluation.intervals import (
    bootstrap_counts,
    percentile_interval,
    wilson_interval,
)
from finetune.evaluation.judgement import (
    FEW_IMAGES,
    Interval,
    Kind,
    Question,
    Score,
    Shown,
    Table,
    fold_score,
    fold_summary,
    readable,
)
from finetune.evaluation.paired import Difference, resampled_difference
from finetune.spec.numbers import quantile_bins
from finetune.tasks.class_scores import Floats, Integers
from finetune.tasks.number_scores import FIGURES, number_scores, weighted_number_scores
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task

MOST_NUMBERS = 4_000_000  # of ranks at a time
LEAST_SHOWN, SHARE_SHOWN = 24, 0.1  # of the images, as the largest errors
NAMES: Mapping[str, tuple[str, Kind]] = {
    "mae": ("MAE", "amount"),
    "rmse": ("RMSE", "amount"),
    "r2": ("R2", "number"),
    "spearman": ("Spearman's correlation", "number"),
}


@dataclass(frozen=True, eq=False)
class NumberEvaluation:
    """All figures of one set of answers; see :class:`finetune.evaluation.judgement.Judgement`.

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
    def task(self) -> Task:
        """A number an image."""
        return REGRESSION

    @property
    def thresholds(self) -> None:
        """None: nothing is named."""

    @property
    def chosen_here(self) -> bool:
        """False: there are none."""
        return False

    @property
    def dominant(self) -> None:
        """None: the largest errors are shown, and each counts as far as it is off."""

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
    def _counts(self) -> Floats:
        return bootstrap_counts(self.groups, len(self.paths))

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of the figures of the whole, by their names."""
        rows = max(1, MOST_NUMBERS // len(self.paths))
        parts = np.array_split(self._counts, -(-len(self._counts) // rows))
        drawn = np.concatenate(
            [weighted_number_scores(self.answers, self.truth, part) for part in parts]
        )
        level = self.confidence_level
        return {
            name: percentile_interval(column, confidence_level=level)
            for name, column in zip(FIGURES, drawn.T, strict=True)
        }

    @property
    def leading(self) -> tuple[Score, ...]:
        """The mean absolute error decides."""
        return tuple(self._score(figure) for figure in NAMES)

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of the whole with their intervals, and how often intervals hold the truth."""
        held = self._held(np.ones(len(self.paths), dtype=bool))
        return (
            *self.leading,
            *(() if held is None else (Score("inside their interval", *held),)),
            *fold_score(self.fold_errors, "amount", rises=False),
        )

    def _score(self, figure: str) -> Score:
        name, kind = NAMES[figure]
        rises = REGRESSION.higher_is_better(figure)
        return Score(name, self.figures[figure], self.intervals[figure], kind, rises)

    def _held(self, images: NDArray[np.bool_]) -> tuple[float, Interval] | None:
        """The share of some images whose number lies inside its interval, with its own interval."""
        if self.half_width is None:
            return None
        inside, total = int((self.losses[images] <= self.half_width).sum()), int(images.sum())
        ends = wilson_interval(inside, total, confidence_level=self.confidence_level)
        return inside / total, ends

    @property
    def about(self) -> str:
        """Which numbers."""
        ends = (readable(float(end), "amount") for end in (self.truth.min(), self.truth.max()))
        return f"each with a number ({self.class_names[0]}), from {' to '.join(ends)}"

    @property
    def notes(self) -> list[str]:
        """That answers are no better than one number for all, where they are not."""
        if self.figures["r2"] > 0:
            return []
        return ["R2 is not above 0: the mean of these numbers would be as good for all of them."]

    @cached_property
    def ranges(self) -> list[dict[str, Any]]:
        """Figures of the images of each part of the range, from the smallest numbers up.

        ``bias`` is the mean of answer less truth: at both ends answers are drawn to the middle.
        """
        bins = np.array(quantile_bins(self.truth.tolist()))
        return [self._of_range(bins == part) for part in np.unique(bins)]

    def _of_range(self, images: NDArray[np.bool_]) -> dict[str, Any]:
        held = self._held(images)
        counts = self._counts[:, images]
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

    @property
    def tables(self) -> tuple[Table, ...]:
        """A row for each part of the range."""
        columns: list[tuple[str, Kind]] = [("numbers", "text"), ("images", "count")]
        columns += [(each, "amount") for each in ("MAE", "MAE from", "MAE to", "too high by")]
        keys = ["support", "mae", "mae_low", "mae_high", "bias"]
        if self.half_width is not None:
            columns.append(("inside their interval", "share"))
            keys.append("inside")
        rows = [
            (f"{_shown(row['from'])} to {_shown(row['to'])}", *(row[key] for key in keys))
            for row in self.ranges
        ]
        few = [row["few_images"] for row in self.ranges]
        return (Table("ranges", "Along the range", columns, rows, few),)

    @property
    def parts(self) -> tuple[str, list[dict[str, Any]]]:
        """A row for each part of the range."""
        return "per_range", self.ranges

    @property
    def error_kinds(self) -> tuple[str, str]:
        """Nothing: errors have a size, no kind."""
        return "", ""

    def shown(self, index: int) -> Shown:
        """One of the images; wrong where its number lies outside of its interval."""
        off = float(self.residuals[index])
        interval = "" if self.half_width is None else f" ± {_shown(self.half_width)}"
        return Shown(
            label=_shown(self.truth[index]),
            answer=_shown(self.answers[index]) + interval,
            wrong=self.half_width is not None and abs(off) > self.half_width,
            remark=f"{_shown(abs(off))} too {'high' if off > 0 else 'low'}",
        )

    def errors(self) -> Integers:
        """Indexes of the images that are furthest off, these first."""
        count = max(LEAST_SHOWN, round(SHARE_SHOWN * len(self.paths)))
        return np.argsort(-self.losses, kind="stable")[:count]

    def rights(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Nothing: an answer is further off or less."""
        return iter(())

    def questions(self) -> Iterator[Question]:
        """None: the largest errors are where numbers on file may be wrong."""
        return iter(())

    def row(self, index: int) -> tuple[Mapping[str, Any], list[float]]:
        """A line of a table of predictions, with the interval where there is one."""
        answer = float(self.answers[index])
        columns: dict[str, Any] = {
            "path": self.paths[index],
            "label": float(self.truth[index]),
            "prediction": answer,
        }
        if self.half_width is not None:
            columns |= {"lower": answer - self.half_width, "upper": answer + self.half_width}
        if self.groups is not None:
            columns["group"] = str(self.groups[index])
        return columns, []

    def against(self, other: NumberEvaluation) -> Difference:
        """Of the MAEs, by a paired bootstrap over groups, those of either that knows of them."""
        groups = other.groups if self.groups is None else self.groups
        counts = replace(self, groups=groups)._counts
        images = counts.sum(axis=1)
        return resampled_difference(
            (self.figures["mae"], other.figures["mae"]),
            (counts @ self.losses / images, counts @ other.losses / images),
            (self.losses < other.losses, other.losses < self.losses),
            confidence_level=self.confidence_level,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        held = self._held(np.ones(len(self.paths), dtype=bool))
        return {
            "images": len(self.paths),
            "confidence_level": self.confidence_level,
            **self.figures,
            **{f"{name}_interval": list(ends) for name, ends in self.intervals.items()},
            **(
                {}
                if held is None
                else {
                    "half_width": self.half_width,
                    "inside_interval": held[0],
                    "inside_interval_interval": list(held[1]),
                }
            ),
            **({"folds": fold_summary(self.fold_errors, "maes")} if self.fold_errors else {}),
            "class_names": list(self.class_names),
            "per_range": self.ranges,
        }


def evaluate_numbers(
    targets: ArrayLike,
    outputs: ArrayLike,
    class_names: Sequence[str] = ("number",),
    paths: Sequence[Any] | None = None,
    *,
    half_width: float | None = None,
    groups: Integers | None = None,
    folds: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> NumberEvaluation:
    """Judge numbers ``(N, 1)`` by the true ones ``(N, 1)``.

    Args:
        targets, outputs: as above.
        class_names: the column's name.
        paths: names of the images; their positions if None.
        half_width: of the interval about each answer, in the user's unit.
        groups: ``(N,)``; images of one number are drawn together by the bootstrap.
        folds: the fold ``(N,)`` that each image was held out in.
        confidence_level: of all intervals.

    Raises:
        UsageError: shapes that do not belong together, or numbers that are not finite.
    """
    # Single precision, as checkpoints keep them and tables tell them: one number from both.
    truth = np.asarray(targets, np.float32).astype(np.float64)
    given, names = np.asarray(outputs, np.float64), tuple(str(name) for name in class_names)
    images = range(len(given)) if paths is None else paths
    if truth.shape != given.shape or given.shape != (len(images), len(names)) or not len(given):
        raise UsageError(
            f"Expected a true number for each of {len(images)} answers of {len(names)} column, "
            f"found {truth.shape} numbers for answers {given.shape}; leave out images without one."
        )
    if not (np.isfinite(given).all() and np.isfinite(truth).all()):
        raise UsageError(
            "Expected finite numbers, found NaN or infinity; take an earlier checkpoint if it "
            "diverged."
        )
    fold_of = np.zeros(0) if folds is None else np.asarray(folds)
    errors = np.abs(given - truth)[:, 0]
    return NumberEvaluation(
        truth,
        given,
        names,
        tuple(str(path) for path in images),
        half_width=half_width,
        groups=groups,
        fold_errors=tuple(float(errors[fold_of == fold].mean()) for fold in np.unique(fold_of)),
        confidence_level=confidence_level,
    )


def _shown(value: float) -> str:
    return f"{value:.6g}"
