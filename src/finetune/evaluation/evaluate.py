"""An evaluation's figures from labels and answers, whoever made them.

Nothing here knows of networks: a single classifier, an ensemble, all folds of a cross-validation
or another tool's CSV are judged by the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_fscore_support

from finetune.errors import UsageError
from finetune.evaluation.clusters import clusters, share_interval
from finetune.evaluation.result import ClassScores, Evaluation
from finetune.evaluation.scores import (
    bootstrap_macro_scores,
    one_vs_rest_auroc,
    risk_coverage,
)
from finetune.tasks.class_scores import (
    CALIBRATION_BINS,
    Floats,
    Integers,
    brier_score,
    confidence_bins,
    confusion_counts,
    label_ranks,
    losses_of,
    macro_scores,
)
from finetune.tasks.multiclass import MULTICLASS

TOP_K = (2, 3, 5)
SMALLEST = float(np.nextafter(0, 1))  # stands for a probability of exactly 0: 744 nats


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    paths: Sequence[Any] | None = None,
    *,
    groups: Integers | None = None,
    folds: ArrayLike | None = None,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Judge ``probabilities (N, C)`` by the true ``labels (N,)``.

    One of exactly 0 counts as the smallest positive float (744 nats): it has lost what it was;
    :func:`evaluate_logits` loses nothing.

    Args:
        paths: names of the images; their numbers if None.
        groups: ``(N,)``; images of one number, such as those of one patient, are not independent,
            and intervals are as wide as that makes them.
        folds: the fold ``(N,)`` that each image was held out in, for a mean over folds.
        confidence_level: of all intervals.
        seed: of the bootstrap.

    Raises:
        UsageError: shapes that do not belong together, or rows that are no probabilities.

    Examples:
        >>> answers = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]
        >>> found = finetune.evaluate([0, 1, 1, 0], answers, ["cat", "dog"])
        >>> found.accuracy, found.errors().tolist()
        (0.75, [2])
    """
    y, p, names = _checked(labels, probabilities, class_names)
    if not (np.isfinite(p).all() and p.min() >= 0 and np.abs(p.sum(axis=1) - 1).max() < 1e-2):
        raise UsageError(
            "Expected probabilities in [0, 1] whose rows sum to 1, found "
            f"values from {p.min():.3g} to {p.max():.3g} and sums from {p.sum(axis=1).min():.3g} "
            f"to {p.sum(axis=1).max():.3g}; give logits to evaluate_logits."
        )
    answers = _Answers(y, p, p, _log_probabilities(np.log(np.maximum(p, SMALLEST))))
    return _judged(answers, names, paths, groups, folds, confidence_level, seed)


def evaluate_logits(
    labels: ArrayLike,
    logits: ArrayLike,
    class_names: Sequence[str],
    paths: Sequence[Any] | None = None,
    *,
    groups: Integers | None = None,
    folds: ArrayLike | None = None,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Judge ``logits (N, C)``, log probabilities among them, as :func:`evaluate` does.

    No probability is too small here: the NLL is that of the logits.

    Raises:
        UsageError: shapes that do not belong together, or values that are not finite.
    """
    y, z, names = _checked(labels, logits, class_names)
    if not np.isfinite(z).all():
        raise UsageError(
            f"Expected finite logits, found {int((~np.isfinite(z)).sum())} that are not; "
            "the classifier diverged: take an earlier checkpoint."
        )
    log_probabilities = _log_probabilities(z)
    answers = _Answers(y, z, np.exp(log_probabilities), log_probabilities)
    return _judged(answers, names, paths, groups, folds, confidence_level, seed)


class _Answers(NamedTuple):
    """Labels and answers; ``ranked`` are the numbers that were given, whose order decides."""

    labels: Integers
    ranked: Floats
    probabilities: Floats
    log_probabilities: Floats


def _judged(
    answers: _Answers,
    names: tuple[str, ...],
    paths: Sequence[Any] | None,
    groups: Integers | None,
    folds: ArrayLike | None,
    confidence_level: float,
    seed: int,
) -> Evaluation:
    y, ranked, p, log_probabilities = answers
    paths = range(len(y)) if paths is None else paths
    if len(paths) != len(y):
        raise UsageError(f"Expected a path for each of {len(y)} images, found {len(paths)}.")
    predictions = MULTICLASS.decide(torch.from_numpy(ranked)).numpy()
    correct = predictions == y
    confusion = confusion_counts(y, predictions, len(names))
    accuracy, balanced, macro_f1 = (float(score) for score in macro_scores(confusion))
    accuracy_bootstrap, balanced_interval, f1_interval = bootstrap_macro_scores(
        y,
        predictions,
        clusters(groups),
        classes=len(names),
        confidence_level=confidence_level,
        seed=seed,
    )
    per_class = _class_scores(y, predictions, p, names, groups, confidence_level)
    areas = [scores.auroc for scores in per_class if not math.isnan(scores.auroc)]
    coverage, risk = risk_coverage(p.max(axis=1), ~correct)
    ranks = label_ranks(y, ranked)
    return Evaluation(
        labels=y,
        probabilities=p,
        log_probabilities=log_probabilities,
        predictions=predictions,
        class_names=names,
        paths=tuple(str(path) for path in paths),
        confidence_level=confidence_level,
        accuracy=accuracy,
        groups=groups,
        accuracy_wilson=share_interval(correct, groups, confidence_level=confidence_level),
        accuracy_bootstrap=accuracy_bootstrap,
        balanced_accuracy=balanced,
        balanced_accuracy_interval=balanced_interval,
        macro_f1=macro_f1,
        macro_f1_interval=f1_interval,
        macro_auroc=float(np.mean(areas)) if areas else math.nan,
        nll=float(losses_of(y, log_probabilities).mean()),
        brier=float(brier_score(y, log_probabilities)),
        aurc=float(risk.mean()),
        top_k={k: float(np.mean(ranks < k)) for k in TOP_K if k < len(names)},
        calibration=confidence_bins(p.max(axis=1), correct, CALIBRATION_BINS),
        coverage=coverage,
        risk=risk,
        confusion=confusion,
        per_class=per_class,
        fold_accuracies=_fold_accuracies(correct, folds),
    )


def _log_probabilities(logits: Floats) -> Floats:
    values: Floats = MULTICLASS.log_probabilities(torch.from_numpy(logits)).numpy()
    return values


def _checked(
    labels: ArrayLike, given: ArrayLike, names: Sequence[str]
) -> tuple[Integers, Floats, tuple[str, ...]]:
    y, answers = np.asarray(labels), np.asarray(given, dtype=np.float64)
    class_names = tuple(str(name) for name in names)
    if answers.ndim != 2 or answers.shape[1] != len(class_names) or len(class_names) < 2:
        raise UsageError(
            "Expected answers (images, classes) of at least two classes, "
            f"found shape {answers.shape} and {len(class_names)} class names."
        )
    if y.shape != answers.shape[:1] or len(y) == 0:
        raise UsageError(
            f"Expected one label for each row of answers and at least one row, found "
            f"{y.shape} labels for {answers.shape[0]} rows; leave out images without a label."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= len(class_names):
        raise UsageError(
            f"Expected integer labels from 0 to {len(class_names) - 1}, found "
            f"{y.min()} to {y.max()} ({y.dtype})."
        )
    return y.astype(np.int64), answers, class_names


def _class_scores(
    labels: Integers,
    predictions: Integers,
    probabilities: Floats,
    class_names: tuple[str, ...],
    groups: Integers | None,
    confidence_level: float,
) -> tuple[ClassScores, ...]:
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(class_names)), zero_division=np.nan
    )
    areas = one_vs_rest_auroc(labels, probabilities)
    return tuple(
        ClassScores(
            name=name,
            support=int(support[i]),
            precision=float(precision[i]),
            recall=float(recall[i]),
            recall_interval=share_interval(
                predictions[own] == i,
                None if groups is None else groups[own],
                confidence_level=confidence_level,
            ),
            f1=float(f1[i]),
            auroc=float(areas[i]),
        )
        for i, name in enumerate(class_names)
        for own in [labels == i]
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
