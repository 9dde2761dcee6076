"""Figures of merit from labels ``(N,)`` and probabilities ``(N, C)``: pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from finetune.evaluation.intervals import percentile_interval

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ConfidenceBins:
    """Images grouped by confidence, for a reliability diagram.

    Attributes:
        edges: of the bins, ``(B + 1,)`` from 0 to 1; a bin holds its upper edge.
        counts: images in each bin, ``(B,)``.
        confidence, accuracy: means in each bin, ``(B,)``, NaN where it is empty.
        error: expected calibration error, the gap of the two means weighted by the counts.
    """

    edges: Floats
    counts: Integers
    confidence: Floats
    accuracy: Floats
    error: float


def confidence_bins(confidences: Floats, correct: NDArray[np.bool_], n_bins: int) -> ConfidenceBins:
    """Equal-width bins of the winning class's probability (Guo et al. 2017, top-label)."""
    edges = np.linspace(0, 1, n_bins + 1)
    index = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, n_bins - 1)
    counts = np.bincount(index, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, confidences, n_bins) / counts
        accuracy = np.bincount(index, correct, n_bins) / counts
    gaps = np.nan_to_num(np.abs(confidence - accuracy))
    return ConfidenceBins(
        edges, counts, confidence, accuracy, float((gaps * counts).sum() / len(confidences))
    )


def negative_log_likelihood(labels: Integers, probabilities: Floats) -> float:
    """Mean of ``-log p(label)``; a probability of exactly 0 counts as the smallest float step."""
    classes = np.arange(probabilities.shape[1])
    return float(
        log_loss(labels, probabilities / probabilities.sum(1, keepdims=True), labels=classes)
    )


def brier_score(labels: Integers, probabilities: Floats) -> float:
    """Mean squared distance to the one-hot label, over all classes: 0 is perfect, 2 the worst."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(np.mean((probabilities**2).sum(axis=1) - 2 * of_label + 1))


def label_ranks(labels: Integers, probabilities: Floats) -> Integers:
    """How many classes come before the label, ``(N,)``; of equals, the lower index comes first."""
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    before = np.arange(probabilities.shape[1])[None, :] < labels[:, None]
    ahead = (probabilities > of_label) | ((probabilities == of_label) & before)
    return ahead.sum(axis=1)


def one_vs_rest_auroc(labels: Integers, probabilities: Floats) -> Floats:
    """Area under each class's ROC curve against all others, ``(C,)``; NaN if undefined."""
    n_classes = probabilities.shape[1]
    areas = np.full(n_classes, np.nan)
    for index in range(n_classes):
        positive = labels == index
        if positive.any() and not positive.all():
            areas[index] = roc_auc_score(positive, probabilities[:, index])
    return areas


def risk_coverage(confidences: Floats, wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Coverage ``(N,)`` and the error rate on that share of the surest images, ``(N,)``.

    Images of equal confidence cannot be told apart by a threshold, so each counts with their mean
    error: the order of the images makes no difference.
    """
    order = np.argsort(-confidences, kind="stable")
    _, group = np.unique(-confidences[order], return_inverse=True)
    mean_error = np.bincount(group, wrong[order]) / np.bincount(group)
    kept = np.arange(1, len(order) + 1)
    return kept / len(order), np.cumsum(mean_error[group]) / kept


def macro_scores(confusion: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Accuracy, balanced accuracy and macro-F1 of ``(..., C, C)`` confusion matrices.

    Balanced accuracy and macro-F1 are means over the classes that occur among the labels.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    return _macro_scores(hits, confusion.sum(axis=-1), confusion.sum(axis=-2))


def _macro_scores(
    hits: Floats, support: NDArray[Any], predicted: NDArray[Any]
) -> tuple[Floats, Floats, Floats]:
    present = support > 0
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=present)
    f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=present)
    n_present = present.sum(axis=-1)
    return (
        hits.sum(axis=-1) / support.sum(axis=-1),
        recall.sum(axis=-1) / n_present,
        f1.sum(axis=-1) / n_present,
    )


def bootstrap_macro_scores(
    confusion: Integers, *, confidence_level: float, resamples: int, seed: int
) -> tuple[tuple[float, float], ...]:
    """Bootstrap intervals of accuracy, balanced accuracy and macro-F1.

    Drawing images with replacement is a multinomial draw over the cells of the confusion matrix
    that hold any image, so nothing needs to be drawn one by one.
    """
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns]
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    n_classes = len(confusion)

    def summed_by(index: Integers, cells: Integers) -> Floats:
        one_hot = np.zeros((len(index), n_classes))
        one_hot[np.arange(len(index)), index] = 1
        return cells.astype(np.float64) @ one_hot

    on_diagonal = rows == columns
    scores = _macro_scores(
        summed_by(rows[on_diagonal], draws[:, on_diagonal]),
        summed_by(rows, draws),
        summed_by(columns, draws),
    )
    return tuple(percentile_interval(s, confidence_level=confidence_level) for s in scores)
