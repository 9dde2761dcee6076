"""The one definition of each figure: pure functions of labels ``(N,)`` and answers ``(N, C)``.

Answers are log probabilities in nats wherever a probability may be too small for a float: the
likelihood of an image that is answered wrongly for sure is a finite number all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CALIBRATION_BINS = 15  # as in Guo et al. 2017 and as torchmetrics has it


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


def macro_scores(confusion: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Accuracy, balanced accuracy and macro-F1 of ``(..., C, C)`` confusion matrices.

    Balanced accuracy and macro-F1 are means over the classes that occur among the labels.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    return macro_scores_of_counts(hits, confusion.sum(axis=-1), confusion.sum(axis=-2))


def macro_scores_of_counts(
    hits: Floats, support: NDArray[Any], predicted: NDArray[Any]
) -> tuple[Floats, Floats, Floats]:
    """The same of hits, images and answers of each class, ``(..., C)``."""
    present = support > 0
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=present)
    f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=present)
    n_present = present.sum(axis=-1)
    return (
        hits.sum(axis=-1) / support.sum(axis=-1),
        recall.sum(axis=-1) / n_present,
        f1.sum(axis=-1) / n_present,
    )
