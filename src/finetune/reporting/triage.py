"""Which labels are probably wrong: ranked suspects for a person to look at.

A label can be wrong in two ways. The image shows *another class*: confident learning (Northcutt,
Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels") takes the
mean probability that images labelled so give their class as the class's threshold, and suspects an
image that clears the threshold of another class. Or it shows *no class* at all, a placeholder or a
scan of a letter: no probability tells that, but its features are far from those of all other images
(Kuan and Mueller 2022, "Back to the Basics: Revisiting Out-of-Distribution Detection Baselines").

Both need *held-out* answers, of a test set or of all folds of a cross-validation: a network has
learned by heart the wrong labels that it was trained on.

Equal to cleanlab's ``confident_learning`` filter and ``normalized_margin`` score, which the tests
compare with; cleanlab itself would bring pandas along for these few lines.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from finetune.evaluation.result import Evaluation
from finetune.files import atomic_write
from finetune.tasks.class_scores import Floats, Integers
from finetune.tasks.multiclass import MULTICLASS

NEIGHBOURS = 10
Reason = Literal["another class", "no class"]


@dataclass(frozen=True, slots=True)
class LabelSuspect:
    """An image whose label may be wrong.

    Attributes:
        index: of the image in the evaluation.
        reason: what puts it at its rank: the probabilities speak for another class, or the image
            is unlike all others.
        suggested: the likeliest class but the label; empty if the image seems to be of no class.
        quality: of the label by the probabilities, in ``[0, 1]``, 0 is the worst.
        suspected: whether the label is taken for wrong; the other images are only ranked.
    """

    index: int
    path: str
    label: str
    reason: Reason
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
    return np.where(np.isfinite(cleared).any(axis=1), _likeliest(cleared), -1)


def wrong_labels(labels: Integers, probabilities: Floats) -> NDArray[np.bool_]:
    """Confident learning's verdict on each label, ``(N,)``.

    A label also has to lose against the classifier's own answer to be called wrong.
    """
    confident = confident_classes(labels, probabilities)
    return (confident >= 0) & (confident != labels) & (_likeliest(probabilities) != labels)


def _likeliest(values: Floats) -> Integers:
    named: Integers = MULTICLASS.decide(torch.from_numpy(values)).numpy()
    return named


def strangeness(embeddings: NDArray[np.floating], *, neighbours: int = NEIGHBOURS) -> Floats:
    """Mean cosine distance of each of ``embeddings (N, D)`` to its nearest others, ``(N,)``."""
    count = min(neighbours, len(embeddings) - 1)
    if count < 1:
        return np.zeros(len(embeddings))
    nearest = NearestNeighbors(n_neighbors=count, metric="cosine").fit(embeddings)
    distances, _ = nearest.kneighbors()  # without arguments no image is its own neighbour
    return np.asarray(distances.mean(axis=1), dtype=np.float64)


def far_out(values: Floats) -> NDArray[np.bool_]:
    """Tukey's outer fence: above the upper quartile by more than three interquartile ranges.

    Distances pile up at the low end, so at least the fence of half that width is asked of the
    single largest value alone.
    """
    low, high = np.quantile(values, [0.25, 0.75])
    largest = values == values.max()
    return (values > high + 3 * (high - low)) | (largest & (values > high + 1.5 * (high - low)))


def rank_suspects(
    evaluation: Evaluation,
    limit: int | None = None,
    *,
    embeddings: NDArray[np.floating] | None = None,
) -> tuple[LabelSuspect, ...]:
    """All images, those whose label is most probably wrong first.

    With ``embeddings (N, D)``, pooled features of the images, the ranking by probabilities and the
    ranking by strangeness are merged in turns; without them placeholders can hide in the middle.
    """
    labels, probabilities = evaluation.labels, evaluation.probabilities
    quality = label_quality(labels, probabilities)
    wrong = wrong_labels(labels, probabilities)
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    suggested = _likeliest(others)
    by_label = np.lexsort((quality, ~wrong))
    ranked: list[tuple[int, Reason]] = [(int(i), "another class") for i in by_label]
    strange = np.zeros(len(labels), dtype=bool)
    if embeddings is not None:
        distances = strangeness(embeddings)
        strange = far_out(distances)
        ranked = _in_turns(by_label, np.argsort(-distances, kind="stable"))
    return tuple(
        LabelSuspect(
            index=i,
            path=evaluation.paths[i],
            label=evaluation.class_names[labels[i]],
            reason=reason,
            suggested=evaluation.class_names[suggested[i]] if reason == "another class" else "",
            quality=float(quality[i]),
            suspected=bool(wrong[i] if reason == "another class" else strange[i]),
        )
        for i, reason in ranked[:limit]
    )


def _in_turns(by_label: Integers, by_distance: Integers) -> list[tuple[int, Reason]]:
    """Each image once, with the list that names it first."""
    reasons: dict[int, Reason] = {}
    for one, other in zip(by_label.tolist(), by_distance.tolist(), strict=True):
        reasons.setdefault(one, "another class")
        reasons.setdefault(other, "no class")
    return list(reasons.items())


def write_suspects(path: Path, suspects: Sequence[LabelSuspect]) -> None:
    """A CSV to go through by hand: path, label, suggested label, quality of the label."""
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "reason", "suggested", "quality", "suspected"])
        for s in suspects:
            quality = f"{s.quality:.6f}"
            writer.writerow([s.path, s.label, s.reason, s.suggested, quality, s.suspected])
