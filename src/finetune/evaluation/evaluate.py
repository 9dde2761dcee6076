"""An evaluation's figures from labels and probabilities, whoever made them.

Nothing here knows of networks: a single classifier, an ensemble, all folds of a cross-validation
or another tool's CSV are judged by the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from finetune.errors import UsageError
from finetune.evaluation.intervals import wilson_interval
from finetune.evaluation.scores import (
    ConfidenceBins,
    Floats,
    Integers,
    bootstrap_macro_scores,
    brier_score,
    confidence_bins,
    label_ranks,
    macro_scores,
    negative_log_likelihood,
    one_vs_rest_auroc,
    risk_coverage,
)

FEW_IMAGES = 5  # below this many test images a class's own figures mean little
CALIBRATION_BINS = 15  # as in Guo et al. 2017 and as torchmetrics has it
TOP_K = (2, 3, 5)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class's figures; NaN where they are undefined (no image, or never predicted)."""

    name: str
    support: int
    precision: float
    recall: float
    recall_interval: Interval
    f1: float
    auroc: float

    @property
    def few_images(self) -> bool:
        """Whether there are too few test images to trust these figures."""
        return self.support < FEW_IMAGES

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None where a figure is undefined."""
        return {
            "class": self.name,
            "support": self.support,
            "precision": _finite(self.precision),
            "recall": _finite(self.recall),
            "recall_low": self.recall_interval[0],
            "recall_high": self.recall_interval[1],
            "f1": _finite(self.f1),
            "auroc": _finite(self.auroc),
            "few_images": self.few_images,
        }


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """``count`` images of class ``label``, a ``share`` of them, were taken for ``prediction``."""

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All figures of one set of answers to one set of images.

    Attributes:
        labels: ``(N,)`` indexes into ``class_names``.
        probabilities: ``(N, C)``, as given.
        class_names, paths: names of the ``C`` classes and of the ``N`` images.
        accuracy: with Wilson's and a bootstrap interval.
        balanced_accuracy, macro_f1: means over the classes that occur among the labels.
        top_k: ``{k: share of images whose label is among the k likeliest classes}``.
        calibration: confidence bins; ``calibration.error`` is the expected calibration error.
        coverage, risk: ``(N,)`` each; ``aurc`` is the mean risk, smaller is better.
        confusion: ``(C, C)`` counts, rows are labels, columns predictions.
        fold_accuracies: accuracy of each fold, if ``evaluate`` was told the folds.
    """

    labels: Integers = field(repr=False)
    probabilities: Floats = field(repr=False)
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = field(repr=False)
    confidence_level: float
    accuracy: float
    accuracy_wilson: Interval
    accuracy_bootstrap: Interval
    balanced_accuracy: float
    balanced_accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    macro_auroc: float
    nll: float
    brier: float
    aurc: float
    top_k: dict[int, float]
    calibration: ConfidenceBins = field(repr=False)
    coverage: Floats = field(repr=False)
    risk: Floats = field(repr=False)
    confusion: Integers = field(repr=False)
    per_class: tuple[ClassScores, ...] = field(repr=False)
    fold_accuracies: tuple[float, ...] = ()

    @property
    def predictions(self) -> Integers:
        """The likeliest class of each image, ``(N,)``; of equals, the first."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidences(self) -> Floats:
        """Probability of the predicted class, ``(N,)``."""
        return self.probabilities.max(axis=1)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 15 equal bins of the winning probability."""
        return self.calibration.error

    @property
    def classes_with_few_images(self) -> tuple[str, ...]:
        """Classes whose own figures mean little, those without any image included."""
        return tuple(scores.name for scores in self.per_class if scores.few_images)

    def confused_pairs(self, limit: int = 20) -> tuple[ConfusedPair, ...]:
        """The most frequent errors, most frequent first."""
        errors = self.confusion.copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
        support = self.confusion.sum(axis=1)
        return tuple(
            ConfusedPair(
                self.class_names[row],
                self.class_names[column],
                int(errors[row, column]),
                float(errors[row, column] / support[row]),
            )
            for row, column in pairs
            if errors[row, column]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``; None where a figure is undefined."""
        folds = self.fold_accuracies
        return {
            "images": len(self.labels),
            "classes": len(self.class_names),
            "confidence_level": self.confidence_level,
            "accuracy": self.accuracy,
            "accuracy_wilson": list(self.accuracy_wilson),
            "accuracy_bootstrap": list(self.accuracy_bootstrap),
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_interval": list(self.balanced_accuracy_interval),
            "macro_f1": self.macro_f1,
            "macro_f1_interval": list(self.macro_f1_interval),
            "macro_auroc": _finite(self.macro_auroc),
            "nll": self.nll,
            "brier": self.brier,
            "calibration_error": self.calibration_error,
            "aurc": self.aurc,
            **{f"top_{k}_accuracy": share for k, share in self.top_k.items()},
            **({"folds": _fold_summary(folds)} if folds else {}),
            "classes_with_few_images": list(self.classes_with_few_images),
            "most_confused": [
                {"label": p.label, "prediction": p.prediction, "count": p.count, "share": p.share}
                for p in self.confused_pairs()
            ],
            "class_names": list(self.class_names),
            "confusion_matrix": self.confusion.tolist(),
        }


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    paths: Sequence[Any] | None = None,
    *,
    folds: ArrayLike | None = None,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Judge ``probabilities (N, C)`` by the true ``labels (N,)``.

    Args:
        paths: names of the images; their numbers if None.
        folds: the fold ``(N,)`` that each image was held out in, for a mean over folds.
        confidence_level: of all intervals.
        seed: of the bootstrap.

    Raises:
        UsageError: shapes that do not belong together, or rows that are no probabilities.
    """
    names = tuple(str(name) for name in class_names)
    y, p = _checked(labels, probabilities, names)
    paths = range(len(y)) if paths is None else paths
    if len(paths) != len(y):
        raise UsageError(f"Expected a path for each of {len(y)} images, found {len(paths)}.")
    correct = p.argmax(axis=1) == y
    confusion = confusion_matrix(y, p.argmax(axis=1), labels=np.arange(len(names)))
    accuracy, balanced, macro_f1 = (float(score) for score in macro_scores(confusion))
    accuracy_bootstrap, balanced_interval, f1_interval = bootstrap_macro_scores(
        confusion, confidence_level=confidence_level, resamples=1000, seed=seed
    )
    per_class = _class_scores(y, p, names, confidence_level)
    areas = [scores.auroc for scores in per_class if not math.isnan(scores.auroc)]
    coverage, risk = risk_coverage(p.max(axis=1), ~correct)
    ranks = label_ranks(y, p)
    return Evaluation(
        labels=y,
        probabilities=p,
        class_names=names,
        paths=tuple(str(path) for path in paths),
        confidence_level=confidence_level,
        accuracy=accuracy,
        accuracy_wilson=wilson_interval(
            int(correct.sum()), len(y), confidence_level=confidence_level
        ),
        accuracy_bootstrap=accuracy_bootstrap,
        balanced_accuracy=balanced,
        balanced_accuracy_interval=balanced_interval,
        macro_f1=macro_f1,
        macro_f1_interval=f1_interval,
        macro_auroc=float(np.mean(areas)) if areas else math.nan,
        nll=negative_log_likelihood(y, p),
        brier=brier_score(y, p),
        aurc=float(risk.mean()),
        top_k={k: float(np.mean(ranks < k)) for k in TOP_K if k < len(names)},
        calibration=confidence_bins(p.max(axis=1), correct, CALIBRATION_BINS),
        coverage=coverage,
        risk=risk,
        confusion=confusion,
        per_class=per_class,
        fold_accuracies=_fold_accuracies(correct, folds),
    )


def _checked(
    labels: ArrayLike, probabilities: ArrayLike, class_names: tuple[str, ...]
) -> tuple[Integers, Floats]:
    y = np.asarray(labels)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != len(class_names) or len(class_names) < 2:
        raise UsageError(
            "Expected probabilities (images, classes) of at least two classes, "
            f"found shape {p.shape} and {len(class_names)} class names."
        )
    if y.shape != p.shape[:1] or len(y) == 0:
        raise UsageError(
            f"Expected one label for each row of probabilities and at least one row, found "
            f"{y.shape} labels for {p.shape[0]} rows; leave out images without a label."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= len(class_names):
        raise UsageError(
            f"Expected integer labels from 0 to {len(class_names) - 1}, found "
            f"{y.min()} to {y.max()} ({y.dtype})."
        )
    if not (np.isfinite(p).all() and p.min() >= 0 and np.abs(p.sum(axis=1) - 1).max() < 1e-2):
        raise UsageError(
            "Expected probabilities in [0, 1] whose rows sum to 1, found "
            f"values from {p.min():.3g} to {p.max():.3g} and sums from {p.sum(axis=1).min():.3g} "
            f"to {p.sum(axis=1).max():.3g}; apply softmax to logits first."
        )
    return y.astype(np.int64), p


def _class_scores(
    labels: Integers, probabilities: Floats, class_names: tuple[str, ...], confidence_level: float
) -> tuple[ClassScores, ...]:
    predictions = probabilities.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(class_names)), zero_division=np.nan
    )
    hits = np.bincount(labels[labels == predictions], minlength=len(class_names))
    areas = one_vs_rest_auroc(labels, probabilities)
    return tuple(
        ClassScores(
            name=name,
            support=int(support[i]),
            precision=float(precision[i]),
            recall=float(recall[i]),
            recall_interval=wilson_interval(
                int(hits[i]), int(support[i]), confidence_level=confidence_level
            ),
            f1=float(f1[i]),
            auroc=float(areas[i]),
        )
        for i, name in enumerate(class_names)
    )


def _fold_accuracies(correct: np.ndarray, folds: ArrayLike | None) -> tuple[float, ...]:
    if folds is None:
        return ()
    fold_of = np.asarray(folds)
    if fold_of.shape != correct.shape:
        raise UsageError(
            f"Expected a fold for each of {len(correct)} images, found {len(fold_of)}."
        )
    return tuple(float(correct[fold_of == fold].mean()) for fold in np.unique(fold_of))


def _fold_summary(accuracies: tuple[float, ...]) -> dict[str, Any]:
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    return {
        "accuracies": list(accuracies),
        "mean": float(np.mean(accuracies)),
        "standard_deviation": deviation,
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
