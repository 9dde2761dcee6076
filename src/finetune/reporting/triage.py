"""Which labels are probably wrong: ranked suspects for a person to look at.

Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty
in Dataset Labels"): a class's threshold is the mean probability that images labelled so give it,
and an image that clears the threshold of another class more clearly than of its own is a suspect.
It needs *held-out* probabilities, of a test set or of all folds of a cross-validation: a network
has learned by heart the wrong labels that it was trained on.

Equal to cleanlab's ``confident_learning`` filter and ``normalized_margin`` score, which the tests
compare with; cleanlab itself would bring pandas along for these thirty lines.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.reporting.evaluation import Evaluation
from finetune.reporting.scores import Floats, Integers


@dataclass(frozen=True, slots=True)
class LabelSuspect:
    """An image whose label may be wrong.

    Attributes:
        index: of the image in the evaluation.
        quality: of the label, in ``[0, 1]``, 0 is the worst.
        suspected: whether confident learning takes the label for wrong; the other images are
            only ranked.
    """

    index: int
    path: str
    label: str
    suggested: str
    quality: float
    suspected: bool


def label_quality(labels: Integers, probabilities: Floats) -> Floats:
    """``(N,)`` in ``[0, 1]``: half of one plus the label's lead over the best other class."""
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return (probabilities[rows, labels] - others.max(axis=1) + 1) / 2


def confident_classes(labels: Integers, probabilities: Floats) -> Integers:
    """The likeliest class among those whose threshold each image clears, ``(N,)``; -1 if none."""
    n_classes = probabilities.shape[1]
    thresholds = np.full(n_classes, np.inf)
    for index in np.unique(labels):
        thresholds[index] = probabilities[labels == index, index].mean()
    cleared = np.where(probabilities >= thresholds - 1e-6, probabilities, -np.inf)
    return np.where(np.isfinite(cleared).any(axis=1), cleared.argmax(axis=1), -1)


def wrong_labels(labels: Integers, probabilities: Floats) -> NDArray[np.bool_]:
    """Confident learning's verdict on each label, ``(N,)``.

    A label also has to lose against the classifier's own answer to be called wrong.
    """
    confident = confident_classes(labels, probabilities)
    return (confident >= 0) & (confident != labels) & (probabilities.argmax(axis=1) != labels)


def rank_suspects(evaluation: Evaluation, limit: int | None = None) -> tuple[LabelSuspect, ...]:
    """All images, those whose label is most probably wrong first."""
    labels, probabilities = evaluation.labels, evaluation.probabilities
    quality = label_quality(labels, probabilities)
    wrong = wrong_labels(labels, probabilities)
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    suggested = others.argmax(axis=1)
    order = np.lexsort((quality, ~wrong))[:limit]
    return tuple(
        LabelSuspect(
            index=int(i),
            path=evaluation.paths[i],
            label=evaluation.class_names[labels[i]],
            suggested=evaluation.class_names[suggested[i]],
            quality=float(quality[i]),
            suspected=bool(wrong[i]),
        )
        for i in order
    )


def write_suspects(path: Path, suspects: Sequence[LabelSuspect]) -> None:
    """A CSV to go through by hand: path, label, suggested label, quality of the label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "suggested", "quality", "suspected"])
        for s in suspects:
            writer.writerow([s.path, s.label, s.suggested, f"{s.quality:.6f}", s.suspected])
