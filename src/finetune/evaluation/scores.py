"""The one definition of each figure: pure functions of labels ``(N,)`` and answers ``(N, C)``.

Answers are log probabilities in nats wherever a probability may be too small for a float: the
likelihood of an image that is answered wrongly for sure is a finite number all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score

from finetune.evaluation.intervals import percentile_interval

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CALIBRATION_BINS = 15  # as in Guo et al. 2017 and as torchmetrics has it
FEW_LOSSES = 10  # among fewer images one of them always carries much


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


@dataclass(frozen=True, slots=True)
class DominantImage:
    """One image whose loss of so many ``nats`` is a ``share`` of all images' loss."""

    path: str
    nats: float
    share: float

    def __str__(self) -> str:
        return (
            f"one image of {self.nats:,.1f} nats carries {100 * self.share:.0f} % of the NLL: "
            f"{self.path}"
        )


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


def calibration_error(labels: Integers, log_probabilities: Floats) -> float:
    """Expected calibration error, in ``[0, 1]``; see :func:`confidence_bins`."""
    correct = log_probabilities.argmax(axis=1) == labels
    return confidence_bins(np.exp(log_probabilities.max(axis=1)), correct, CALIBRATION_BINS).error


def losses_of(labels: Integers, log_probabilities: Floats) -> Floats:
    """``-log p(label)`` in nats: ``(..., N, C)`` to ``(..., N)``; the mean of these is the NLL."""
    return -log_probabilities[..., np.arange(len(labels)), labels]


def brier_score(labels: Integers, log_probabilities: Floats) -> Floats:
    """Mean squared distance to the one-hot label: ``(..., N, C)`` to ``(...)``, 0 to 2.

    Over all classes, as scikit-learn's ``brier_score_loss`` without halving.
    """
    of_label = np.exp(-losses_of(labels, log_probabilities))
    squares = np.exp(2 * log_probabilities).sum(axis=-1)
    score: Floats = np.mean(squares - 2 * of_label + 1, axis=-1)
    return score


def dominant_image(losses: Floats, paths: Sequence[str | Path]) -> DominantImage | None:
    """The one image with more than half of the summed losses ``(N,)``; None among few images."""
    worst, total = int(losses.argmax()), float(losses.sum())
    if len(losses) < FEW_LOSSES or not losses[worst] > total / 2:
        return None
    return DominantImage(str(paths[worst]), float(losses[worst]), float(losses[worst]) / total)


def confusion_counts(labels: Integers, predictions: Integers, n_classes: int) -> Integers:
    """Images ``(C, C)`` by label (rows) and prediction (columns)."""
    counts: Integers = confusion_matrix(labels, predictions, labels=np.arange(n_classes))
    return counts


def label_ranks(labels: Integers, probabilities: Floats) -> Integers:
    """How many classes come before the label, ``(N,)``; of equals, the lower index comes first.

    Logits rank as their probabilities do.
    """
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
