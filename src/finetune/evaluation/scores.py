"""Figures that a report has beside: one image's share, ranking, rejection and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from finetune.evaluation.intervals import percentile_interval
from finetune.tasks.class_scores import Floats, Integers, macro_scores_of_counts

FEW_LOSSES = 10  # among fewer images one of them always carries much


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


def dominant_image(losses: Floats, paths: Sequence[str | Path]) -> DominantImage | None:
    """The one image with more than half of the summed losses ``(N,)``; None among few images."""
    worst, total = int(losses.argmax()), float(losses.sum())
    if len(losses) < FEW_LOSSES or not losses[worst] > total / 2:
        return None
    return DominantImage(str(paths[worst]), float(losses[worst]), float(losses[worst]) / total)


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
    scores = macro_scores_of_counts(
        summed_by(rows[on_diagonal], draws[:, on_diagonal]),
        summed_by(rows, draws),
        summed_by(columns, draws),
    )
    return tuple(percentile_interval(s, confidence_level=confidence_level) for s in scores)
