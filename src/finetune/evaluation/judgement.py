"""What a report and a comparison ask of an evaluation, whatever was predicted.

Another task brings one more class with all of this, and a line in :mod:`finetune.evaluation.judge`;
which figures are drawn of it, :func:`finetune.reporting.drawings.drawings_of` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.paired import Difference
from finetune.evaluation.scores import DominantImage
from finetune.tasks.class_scores import Floats, Integers
from finetune.tasks.task import Task

FEW_IMAGES = 5  # below this many test images a class's or a label's own figures mean little
Interval = tuple[float, float]
Kind = Literal["share", "number", "amount", "count", "text"]
Value = str | float | None


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of an evaluation.

    Attributes:
        value: NaN where it is not defined.
        kind: a ``share`` is shown in per cent, a ``number`` as it is, an ``amount`` has the user's
            unit and any size.
        interval: at the evaluation's level, where there is one.
        rises: whether more of it is better.
    """

    name: str
    value: float
    interval: Interval | None = None
    kind: Kind = "share"
    rises: bool = True

    @property
    def shown(self) -> str:
        """The value as people read it."""
        return readable(self.value, self.kind)

    @property
    def shown_interval(self) -> str:
        """Empty where there is none, or one without width: right answers alone are no certainty."""
        if self.interval is None or not self.interval[0] < self.interval[1]:
            return ""
        return f"[{', '.join(readable(end, self.kind) for end in self.interval)}]"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page.

    Attributes:
        name: that trackers and anchors know it by. title: for people.
        columns: their titles, each with what its cells hold.
        rows: a cell may be None or NaN, where a figure is undefined.
        few: which rows are about too few images to be trusted.
    """

    name: str
    title: str
    columns: Sequence[tuple[str, Kind]]
    rows: Sequence[Sequence[Value]]
    few: Sequence[bool] = ()


class Part(NamedTuple):
    """A class or a label that one may pick errors by."""

    number: int
    name: str


class OfPart(NamedTuple):
    """The answers about one class or label.

    Attributes:
        name: of it.
        images: which are about it, ``(N,)``.
        right: of these, which were answered right, ``(M,)``.
    """

    name: str
    images: NDArray[np.bool_]
    right: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shown:
    """An image, its label and its answer in words.

    Attributes:
        sure: probability of what was answered, or None.
        remark: what is wrong, where label and answer do not tell it at a glance.
        of_label, of_answer: by which an error is found, as :attr:`Judgement.error_kinds` says.
    """

    label: str
    answer: str
    wrong: bool
    sure: float | None = None
    remark: str = ""
    of_label: tuple[Part, ...] = ()
    of_answer: tuple[Part, ...] = ()


class Question(NamedTuple):
    """Something that each of some images was asked, whose answer on file may be wrong.

    Attributes:
        images: ``(n,)`` indexes.
        answers: on file, ``(n,)`` indexes into ``alternatives``.
        probabilities: ``(n, D)``; rows sum to 1.
        alternatives: D in words.
    """

    images: Integers
    answers: Integers
    probabilities: Floats
    alternatives: Sequence[str]


class Judgement(Protocol):
    """All that is known of one set of answers to N images."""

    @property
    def task(self) -> Task:
        """What was predicted."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of what was predicted."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the images."""

    @property
    def confidence_level(self) -> float:
        """Of all intervals."""

    @property
    def targets(self) -> NDArray[Any]:
        """What is true, ``(N, ...)``, as the task collates it."""

    @property
    def outputs(self) -> Floats:
        """Logits ``(N, K)``, or what else the task makes answers of."""

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Probabilities above which an output is named, where the task has them."""

    @property
    def chosen_here(self) -> bool:
        """Whether they were chosen on these very images, so that what they decide flatters."""

    @property
    def half_width(self) -> float | None:
        """Of the interval about each number, in its unit, where the answers have one."""

    @property
    def groups(self) -> Integers | None:
        """Images of one number ``(N,)`` are drawn together by a bootstrap; None: each alone."""

    @property
    def losses(self) -> Floats:
        """The plain loss of each image, ``(N,)``."""

    @property
    def confidences(self) -> Floats | None:
        """How sure each answer is, ``(N,)`` in ``[0, 1]``; None where answers do not say."""

    @property
    def dominant(self) -> DominantImage | None:
        """The one image that carries more than half of the loss, where there is such."""

    @property
    def leading(self) -> tuple[Score, ...]:
        """For a leaderboard: the first decides, and has an interval."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """For a page's head: all figures of the whole."""

    @property
    def about(self) -> str:
        """How many classes, labels or the like."""

    @property
    def notes(self) -> list[str]:
        """What to beware of."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """The first has a row for each of :attr:`class_names`."""

    @property
    def parts(self) -> tuple[str, list[dict[str, Any]]]:
        """Figures of each class or label as plain values, and the name of their table's file."""

    @property
    def error_kinds(self) -> tuple[str, str]:
        """What errors can be picked by: a word for :attr:`Shown.of_label`, one for the answer."""

    def shown(self, index: int) -> Shown:
        """One of the images."""

    def errors(self) -> Integers:
        """Indexes of the wrong answers, the surest first."""

    def rights(self) -> Iterator[OfPart]:
        """Of each class or label that can be judged."""

    def questions(self) -> Iterator[Question]:
        """What a search for wrong labels looks through."""

    def row(self, index: int) -> tuple[Mapping[str, Any], list[float]]:
        """A line of a table of predictions: columns, then a log probability for each name."""

    def against(self, other: Any) -> Difference:
        """How :attr:`leading` differs from that of another evaluation of the same images."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``; None where a figure is undefined."""


def readable(value: Value, kind: Kind) -> str:
    """A cell in words: a dash where it is not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    match kind:
        case "share":
            return f"{100 * float(value):.1f} %"
        case "number":
            return f"{float(value):.4f}"
        case "amount":
            large = abs(float(value)) >= 1e4
            return f"{float(value):,.0f}" if large else f"{float(value):.4g}"
        case _:
            return str(value)


def few_note(names: Sequence[str]) -> list[str]:
    """A line about names with too few images; none without such."""
    if not names:
        return []
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return [f"Fewer than five test images, so figures of their own mean little: {listed}."]


def finite(value: float) -> float | None:
    """A value for JSON: None instead of NaN."""
    return None if math.isnan(value) else value


def fold_summary(values: Sequence[float], name: str) -> dict[str, Any]:
    """The figure of each fold, their mean and their standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    mean = float(np.mean(values))
    return {name: list(values), "mean": mean, "standard_deviation": deviation}


def fold_score(
    values: Sequence[float], kind: Kind = "share", *, rises: bool = True
) -> tuple[Score, ...]:
    """The mean over folds with their deviation around it; nothing without folds."""
    if not values:
        return ()
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    name = f"mean of {len(values)} folds"
    name += "" if math.isnan(spread) else f", ± {readable(spread, kind)}"
    return (Score(name, float(np.mean(values)), kind=kind, rises=rises),)
