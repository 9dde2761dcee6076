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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from finetune.csv_table import csv_text
from finetune.evaluation.judgement import Judgement, Question
from finetune.files import write_text
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
    evaluation: Judgement,
    limit: int | None = None,
    *,
    embeddings: NDArray[np.floating] | None = None,
) -> tuple[LabelSuspect, ...]:
    """All answers on file, those that are most probably wrong first: one an image, or one a label.

    With ``embeddings (N, D)``, pooled features of the images, the ranking by probabilities and the
    ranking by strangeness are merged in turns; without them placeholders can hide in the middle.
    """
    by_label = _by_label(evaluation)
    if embeddings is None:
        return tuple(by_label[:limit])
    distances = strangeness(embeddings)
    strange = far_out(distances)
    by_distance = [
        LabelSuspect(
            index=index,
            path=evaluation.paths[index],
            label=evaluation.shown(index).label,
            reason="no class",
            suggested="",
            quality=1.0,
            suspected=bool(strange[index]),
        )
        for index in np.argsort(-distances, kind="stable").tolist()
    ]
    return tuple(_in_turns(by_label, by_distance)[:limit])


def credible(evaluation: Judgement, suspects: Sequence[LabelSuspect]) -> list[LabelSuspect]:
    """The suspected ones, without those of classes of which the answers find less than half.

    There the answers are what is wrong: they prove little about labels.
    """
    found = {name: right.mean() for name, _, right in evaluation.rights()}
    return [each for each in suspects if each.suspected and found.get(each.label, 1.0) >= 0.5]


def _by_label(evaluation: Judgement) -> list[LabelSuspect]:
    found = [_of_question(evaluation, question) for question in evaluation.questions()]
    both = chain.from_iterable(found)
    return sorted(both, key=lambda each: (not each.suspected, each.quality))


def _of_question(evaluation: Judgement, question: Question) -> list[LabelSuspect]:
    images, answers, probabilities, alternatives = question
    if not len(images):
        return []
    wrong = wrong_labels(answers, probabilities)
    others = probabilities.copy()
    others[np.arange(len(answers)), answers] = -np.inf
    quality = label_quality(answers, probabilities)
    return [
        LabelSuspect(
            index=image,
            path=evaluation.paths[image],
            label=alternatives[answer],
            reason="another class",
            suggested=alternatives[other],
            quality=float(how_good),
            suspected=bool(suspected),
        )
        for image, answer, other, how_good, suspected in zip(
            images.tolist(),
            answers.tolist(),
            _likeliest(others).tolist(),
            quality,
            wrong,
            strict=True,
        )
    ]


def _in_turns(
    by_label: Sequence[LabelSuspect], by_distance: Sequence[LabelSuspect]
) -> list[LabelSuspect]:
    """What the answers and what the features put first, one by one; each image once.

    An image that both name keeps its quality by the answers, and their reason where it is the only
    one that suspects it.
    """
    of_image: dict[int, LabelSuspect] = {}
    for each in by_label:
        of_image.setdefault(each.index, each)
    found: dict[int, LabelSuspect] = {}
    for one, other in zip_longest(of_image.values(), by_distance):
        if one is not None:
            found.setdefault(one.index, one)
        if other is not None:
            known = of_image.get(other.index, other)
            strange = other.suspected or not known.suspected
            told = replace(other, quality=known.quality) if strange else known
            found.setdefault(other.index, told)
    return list(found.values())


def write_suspects(path: Path, suspects: Sequence[LabelSuspect]) -> None:
    """A CSV to go through by hand: path, label, suggested label, quality of the label."""
    columns = ("path", "label", "reason", "suggested", "quality", "suspected")
    rows = (
        (s.path, s.label, s.reason, s.suggested, f"{s.quality:.6f}", s.suspected) for s in suspects
    )
    write_text(path, csv_text(columns, rows))
