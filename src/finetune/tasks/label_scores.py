"""Figures of several labels an image: AP, AUROC and F1 a label, thresholds, and their means.

Pure functions of outputs ``(N, K)`` (logits) and targets ``(N, K)``: 1, 0, or NaN for not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.tasks.class_scores import Floats

# So many images with a label weigh as much as what all labels together say of its threshold.
SHRINKAGE = 10.0
# Far from everything nothing is known; beyond it a threshold is 0 or 1 in single precision.
FAR = 20.0


FIGURES = ("ap", "auroc", "f1", "precision", "recall")


@dataclass(frozen=True, slots=True)
class LabelScores:
    """One label's figures; NaN where they are undefined.

    Attributes:
        support: images that have it. known: images of which it is known.
        ap: average precision. auroc: area under the ROC curve. f1, precision, recall: as decided.
    """

    support: int
    known: int
    ap: float
    auroc: float
    f1: float
    precision: float
    recall: float


def label_scores(outputs: Floats, targets: Floats, offsets: Floats) -> list[LabelScores]:
    """The figures of each label, as scikit-learn has them, over the images where it is known.

    Args:
        outputs, targets: ``(N, K)``.
        offsets: logits of the thresholds, ``(K,)``.
    """
    once = weighted_scores(outputs, targets, offsets, np.ones((1, len(outputs))))[0]
    known = ~np.isnan(targets)
    return [
        LabelScores(int((targets[:, label] == 1).sum()), int(known[:, label].sum()), *values)
        for label, values in enumerate(once.tolist())
    ]


def weighted_scores(outputs: Floats, targets: Floats, offsets: Floats, weights: Floats) -> Floats:
    """:data:`FIGURES` of each label, ``(R, K, 5)``, for R weightings of the images ``(R, N)``.

    As scikit-learn's with ``sample_weight``; NaN where one is undefined. A bootstrap draws an
    image so and so often.
    """
    found = np.empty((len(weights), outputs.shape[1], len(FIGURES)))
    for label, known in enumerate(~np.isnan(targets.T)):
        given, truth = outputs[known, label], targets[known, label] == 1
        found[:, label] = _scores_of(given, truth, given > offsets[label], weights[:, known])
    return found


def _scores_of(outputs: Floats, truth: np.ndarray, named: np.ndarray, weights: Floats) -> Floats:
    order = np.argsort(-outputs, kind="stable")
    last_of_equals = np.append(np.diff(outputs[order]) < 0, True)[: len(order)]
    ordered = weights[:, order]
    # Images that have the label, and that lack it, down to each different answer.
    having = (ordered * truth[order]).cumsum(axis=1)[:, last_of_equals]
    lacking = (ordered * ~truth[order]).cumsum(axis=1)[:, last_of_equals]
    support, others = weights @ truth, weights @ ~truth
    hits, answered = weights @ (named & truth), weights @ named
    more = np.diff(having, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.nan_to_num(having / (having + lacking))
        ap = (more * share).sum(axis=1) / support
        below = (having - more / 2) * np.diff(lacking, axis=1, prepend=0.0)
        auroc = below.sum(axis=1) / (support * others)
        f1 = np.where(support > 0, 2 * hits / (support + answered), np.nan)
        return np.stack([ap, auroc, f1, hits / answered, hits / support], axis=1)


def mean_of(values: Sequence[float]) -> float:
    """Over those that are defined; 0 where none is, so that a monitor can compare it."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else 0.0


def best_thresholds(
    outputs: Floats, targets: Floats, precision: float | None = None
) -> list[float]:
    """Probabilities ``(K,)`` above which a label is named, for the best F1 on these images.

    On a few images with a label the best threshold is chance. So its logit is drawn towards the
    one that is best for all labels together, and that one towards 0.5: each counts with the images
    that have the label against :data:`SHRINKAGE`.

    Args:
        outputs, targets: ``(N, K)``.
        precision: thresholds that find most with this precision are wanted instead; where none
            has it, the label is not named.
    """
    known = ~np.isnan(targets)
    common, having = _best_offset(outputs[known], targets[known] == 1, precision)
    common *= having / (having + SHRINKAGE)
    found = []
    for label, where in enumerate(known.T):
        own, having = _best_offset(outputs[where, label], targets[where, label] == 1, precision)
        drawn = (having * own + SHRINKAGE * common) / (having + SHRINKAGE)
        found.append(1 / (1 + math.exp(-drawn)))
    return found


def _best_offset(outputs: Floats, truth: np.ndarray, precision: float | None) -> tuple[float, int]:
    """The best logit, halfway between two answers, and the images that count for it."""
    having = int(truth.sum())
    if not 0 < having < len(truth):
        return 0.0, 0
    order = np.argsort(-outputs, kind="stable")
    values, hits = outputs[order], np.cumsum(truth[order])
    named = np.arange(1, len(values) + 1)
    merit = (
        2 * hits / (named + having)
        if precision is None
        else np.where(hits >= precision * named, hits, -1.0)
    )
    last_of_equals = np.append(values[1:] < values[:-1], True)
    merit = np.where(last_of_equals, merit, -1.0)
    best = int(np.argmax(merit))
    if merit[best] < 0:
        return FAR, having
    below = values[best + 1] if best + 1 < len(values) else values[best] - 1
    return float(np.clip((values[best] + below) / 2, -FAR, FAR)), having
