"""What a report says before it shows figures: how good, which errors, what to do next.

Every sentence and every piece of advice follows from figures of the same page; where a figure is
missing, so is what follows from it. Another task brings its own words: ``@words_of.register``, as
it brings its figures by :func:`finetune.reporting.drawings.drawings_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from finetune.evaluation.intervals import wilson_interval
from finetune.evaluation.judgement import FEW_IMAGES, Interval, Judgement, readable
from finetune.evaluation.label_evaluation import LabelEvaluation
from finetune.evaluation.number_answers import range_name
from finetune.evaluation.number_evaluation import NumberEvaluation
from finetune.evaluation.result import Evaluation
from finetune.tasks.class_scores import ConfidenceBins, Floats

NAMED = 3  # at most so many classes, labels or pairs in a sentence
OFTEN = 3  # errors of one kind from which on they call for advice
POOR_CALIBRATION = 0.05


class Advice(NamedTuple):
    """What to do, and the figures that say why."""

    do: str
    because: str


class Words(NamedTuple):
    """What an evaluation alone says.

    Attributes:
        sentences: how good, then which errors. trust: whether it knows how sure it may be.
        advice: what follows, the most useful first.
    """

    sentences: list[str]
    trust: list[str]
    advice: list[Advice]


class TrustWords(NamedTuple):
    """How a task says that what is said on average holds, or does not."""

    trusted: str
    too_much: str
    too_little: str
    true: str


OF_CLASSES = TrustWords(
    "Its confidence can be trusted", "It is too sure", "It is not sure enough", "are right"
)
OF_LABELS = TrustWords(
    "Its probabilities can be trusted",
    "Its probabilities are too high",
    "Its probabilities are too low",
    "of all labels are there",
)


@singledispatch
def words_of(evaluation: Judgement) -> Words:
    """What is said of an evaluation."""
    raise NotImplementedError(type(evaluation).__name__)


@words_of.register
def _(evaluation: Evaluation) -> Words:
    right, images = int(np.trace(evaluation.confusion)), len(evaluation.labels)
    sentences = [_so_many(right, images, "right", evaluation.accuracy_wilson)]
    often = [pair for pair in evaluation.confused_pairs(NAMED) if pair.count > 1]
    if often:
        pairs = [f"{p.label} taken for {p.prediction} ({_times(p.count)})" for p in often]
        sentences.append(f"Most errors: {listed(pairs)}.")
    found, lowest = evaluation.confusion.diagonal().tolist(), evaluation.accuracy_wilson[0]
    worse = [
        (scores.recall, f"{scores.name} ({hits} of {scores.support})")
        for scores, hits in zip(evaluation.per_class, found, strict=True)
        if scores.support >= FEW_IMAGES and scores.recall_interval[1] < lowest
    ]
    if worse:
        names = [name for _, name in sorted(worse)[:NAMED]]
        sentences.append(f"Found clearly less often than the rest: {listed(names)}.")
    trust, calibrate = _trust(evaluation.calibration, evaluation.accuracy_wilson, OF_CLASSES)
    return Words(sentences, trust, [*_confused(evaluation), *calibrate])


@words_of.register
def _(evaluation: LabelEvaluation) -> Words:
    right, images = int(evaluation.right.sum()), len(evaluation.paths)
    interval = evaluation.intervals["exact_set_accuracy"]
    sentences = [_so_many(right, images, "with all labels right", interval)]
    missed, added = (each.sum(axis=0).tolist() for each in (evaluation.missed, evaluation.added))
    support = [scores.support for scores in evaluation.per_label]
    lost = _most(missed, [f"{n} ({m} of {s})" for n, m, s in _zip(evaluation, missed, support)])
    if lost:
        sentences.append(f"Most often missed: {listed(lost)}.")
    named = _most(added, [f"{n} ({_times(a)})" for n, a, _ in _zip(evaluation, added, support)])
    if named:
        sentences.append(f"Most often named where they are not: {listed(named)}.")
    advice = [
        Advice(
            f"Add images that show {name}",
            f"it is missed in {count} of the {of} images that have it",
        )
        for name, count, of in _zip(evaluation, missed, support)
        if count == max(missed) and count >= OFTEN and 2 * count >= of
    ]
    bins = evaluation.calibration
    answers = int(bins.counts.sum())
    true = wilson_interval(round(_mean(bins, bins.accuracy) * answers), answers)
    trust, calibrate = _trust(bins, true, OF_LABELS)
    return Words(sentences, trust, [*advice[:1], *calibrate])


@words_of.register
def _(evaluation: NumberEvaluation) -> Words:
    lead, images, r2 = evaluation.leading[0], len(evaluation.paths), evaluation.figures["r2"]
    off = f"{lead.shown} on average {lead.shown_interval}".strip()
    sentences = [f"Off by {off} on {images} images ({evaluation.class_names[0]})."]
    if r2 > 0:
        sentences.append(f"It explains {share(r2)} of how the numbers differ.")
    else:
        sentences.append("One number for all, their mean, would be as good.")
    advice, ranges = [], evaluation.ranges
    hardest, first, last = max(ranges, key=lambda part: part["mae_low"]), ranges[0], ranges[-1]
    if 2 * first["bias"] > first["mae"] and -2 * last["bias"] > last["mae"]:
        sentences.append("Small numbers come out too high, and large ones too low.")
        reason = f"by {readable(first['bias'], 'amount')} and {readable(-last['bias'], 'amount')}"
        advice = [Advice("Add images with small and large numbers", f"they are off {reason}")]
    elif hardest["mae_low"] > evaluation.intervals["mae"][1]:
        sentences.append(f"Furthest off from {range_name(hardest)}.")
        reason = f"off by {readable(hardest['mae'], 'amount')} there on average"
        advice = [Advice(f"Add images from {range_name(hardest)}", reason)]
    if evaluation.held is None or evaluation.half_width is None:
        reason = "a number alone does not say how far off it may be"
        calibrate = Advice("Give it intervals: `finetune calibrate --conformal 0.1`", reason)
        return Words(sentences, [], [*advice, calibrate])
    within = readable(evaluation.half_width, "amount")
    trust = f"{share(evaluation.held[0])} of the true numbers lie within {within} of the answer."
    reason = "no part of the range stands out"
    stronger = Advice("Fit a stronger backbone, and `finetune compare` the two", reason)
    return Words(sentences, [trust], advice or [stronger])


def share(value: float) -> str:
    """Whole per cent, but never all or nothing where it is not."""
    text = f"{100 * value:.0f}"
    if text in ("0", "100") and 0 < value < 1:
        text = f"{min(max(100 * value, 0.1), 99.9):.1f}"
    return f"{text} %"


def listed(names: Sequence[str]) -> str:
    """Names as people list them, of many the first ones and how many are left."""
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def _so_many(right: int, images: int, what: str, interval: Interval) -> str:
    low, high = (share(end) for end in interval)
    ends = "" if low == high else f", {low.removesuffix(' %')} to {high}"
    return f"{right} of {images} {what} ({share(right / images)}{ends})."


def _zip(
    evaluation: LabelEvaluation, counts: list[int], support: list[int]
) -> list[tuple[str, int, int]]:
    return list(zip(evaluation.class_names, counts, support, strict=True))


def _most(counts: Sequence[int], told: Sequence[str]) -> list[str]:
    order = sorted(range(len(counts)), key=lambda index: -counts[index])[:NAMED]
    return [told[index] for index in order if counts[index] > 1]


def _confused(evaluation: Evaluation) -> list[Advice]:
    """The two classes that are most often taken for each other, where that is no single case."""
    errors = evaluation.confusion * ~np.eye(len(evaluation.confusion), dtype=bool)
    both = np.triu(errors + errors.T)
    count, total = int(both.max()), int(errors.sum())
    if count < OFTEN or 4 * count < total:
        return []
    one, other = (evaluation.class_names[i] for i in np.argwhere(both == count)[0])
    return [
        Advice(
            f"Add images that tell {one} from {other}, or make them one class",
            f"{count} of the {total} errors take one for the other",
        )
    ]


def _mean(bins: ConfidenceBins, of_each: Floats) -> float:
    return float(np.nansum(bins.counts * of_each) / bins.counts.sum())


def _trust(
    bins: ConfidenceBins, interval: Interval, words: TrustWords
) -> tuple[list[str], list[Advice]]:
    """Whether what is said on average lies within the interval of what is true on average."""
    said, true = _mean(bins, bins.confidence), _mean(bins, bins.accuracy)
    low, high = interval
    told = f"{share(said)} on average, and {share(true)} {words.true}"
    if bins.error >= POOR_CALIBRATION and not low <= said <= high:
        how = words.too_much if said > true else words.too_little
        calibrate = Advice("Calibrate it with `finetune calibrate`", f"it says {told}")
        return [f"{how}: {told}."], [calibrate]
    if low <= said <= high:
        return [f"{words.trusted}: {told}."], []
    return [], []
