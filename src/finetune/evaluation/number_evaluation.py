"""What is told of a number an image: to a page, a table, a leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finetune.errors import UsageError
from finetune.evaluation.judgement import (
    Kind,
    OfPart,
    Question,
    Score,
    Shown,
    Table,
    fold_score,
    fold_summary,
    readable,
)
from finetune.evaluation.number_answers import NumberAnswers, range_name, shown_number
from finetune.evaluation.paired import Difference, resampled_difference
from finetune.tasks.class_scores import Integers
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task

LEAST_SHOWN, SHARE_SHOWN = 24, 0.1  # of the images, as the largest errors
NAMES: Mapping[str, tuple[str, Kind]] = {
    "mae": ("MAE", "amount"),
    "rmse": ("RMSE", "amount"),
    "r2": ("R2", "number"),
    "spearman": ("Spearman's correlation", "number"),
}


class NumberEvaluation(NumberAnswers):
    """All figures of one set of answers; see :class:`finetune.evaluation.judgement.Judgement`."""

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
    def confidences(self) -> None:
        """None: intervals have one width."""

    @property
    def dominant(self) -> None:
        """None: the largest errors are shown, and each counts as far as it is off."""

    @property
    def leading(self) -> tuple[Score, ...]:
        """The mean absolute error decides."""
        return tuple(self._score(figure) for figure in NAMES)

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of the whole with their intervals, and how often intervals hold the truth."""
        return (
            *self.leading,
            *(() if self.held is None else (Score("inside their interval", *self.held),)),
            *fold_score(self.fold_errors, "amount", rises=False),
        )

    def _score(self, figure: str) -> Score:
        name, kind = NAMES[figure]
        rises = REGRESSION.higher_is_better(figure)
        return Score(name, self.figures[figure], self.intervals[figure], kind, rises)

    @property
    def about(self) -> str:
        """Which numbers."""
        ends = (readable(float(end), "amount") for end in (self.truth.min(), self.truth.max()))
        return f"each with a number ({self.class_names[0]}), from {' to '.join(ends)}"

    @property
    def notes(self) -> list[str]:
        """None: :mod:`finetune.reporting.words` says it in words."""
        return []

    @property
    def tables(self) -> tuple[Table, ...]:
        """A row for each part of the range."""
        columns: list[tuple[str, Kind]] = [("numbers", "text"), ("images", "count")]
        columns += [(each, "amount") for each in ("MAE", "MAE from", "MAE to", "too high by")]
        keys = ["support", "mae", "mae_low", "mae_high", "bias"]
        if self.half_width is not None:
            columns.append(("inside their interval", "share"))
            keys.append("inside")
        rows = [(range_name(row), *(row[key] for key in keys)) for row in self.ranges]
        few = [row["few_images"] for row in self.ranges]
        return (Table("ranges", "Parts of the range", columns, rows, few),)

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
        interval = "" if self.half_width is None else f" ± {shown_number(self.half_width)}"
        return Shown(
            label=shown_number(self.truth[index]),
            answer=shown_number(self.answers[index]) + interval,
            wrong=self.half_width is not None and abs(off) > self.half_width,
            remark=f"{shown_number(abs(off))} too {'high' if off > 0 else 'low'}",
        )

    def errors(self) -> Integers:
        """Indexes of the images that are furthest off, these first."""
        count = max(LEAST_SHOWN, round(SHARE_SHOWN * len(self.paths)))
        return np.argsort(-self.losses, kind="stable")[:count]

    def rights(self) -> Iterator[OfPart]:
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
        counts = replace(self, groups=groups).counts
        images = counts.sum(axis=1)
        return resampled_difference(
            (self.figures["mae"], other.figures["mae"]),
            (counts @ self.losses / images, counts @ other.losses / images),
            (self.losses < other.losses, other.losses < self.losses),
            confidence_level=self.confidence_level,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        held = self.held
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
