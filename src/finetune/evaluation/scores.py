"""Figures that a report has beside: one image's share, ranking, rejection and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from finetune.evaluation.intervals import bootstrap_counts, percentile_interval
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
    labels: Integers,
    predictions: Integers,
    groups: Integers | None = None,
    *,
    classes: int,
    confidence_level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[tuple[float, float], ...]:
    """Bootstrap intervals of accuracy, balanced accuracy and macro-F1 of ``N`` answers.

    Drawing images with replacement is a multinomial draw over the pairs of label and answer that
    occur, so nothing needs to be drawn one by one. Of images in groups ``(N,)``, groups are drawn.
    """
    if groups is None:
        pairs, counts = np.unique(labels * classes + predictions, return_counts=True)
        rows, columns = np.divmod(pairs, classes)
        chances, rng = counts / len(labels), np.random.default_rng(seed)
        draws = rng.multinomial(len(labels), chances, size=resamples).astype(np.float64)
    else:
        rows, columns = labels, predictions
        draws = bootstrap_counts(groups, len(labels), resamples=resamples, seed=seed)

    def summed_by(index: Integers, drawn: Floats) -> Floats:
        one_hot = np.zeros((len(index), classes))
        one_hot[np.arange(len(index)), index] = 1
        return drawn @ one_hot

    right = rows == columns
    scores = macro_scores_of_counts(
        summed_by(rows[right], draws[:, right]), summed_by(rows, draws), summed_by(columns, draws)
    )
    return tuple(percentile_interval(s, confidence_level=confidence_level) for s in scores)
