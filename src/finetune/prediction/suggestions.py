"""Which of many unlabelled images to label next: doubtful ones, unlike each other, each once.

How much a label would tell is one minus the margin between the two likeliest classes (Scheffer et
al., Active hidden Markov models for information extraction, 2001); of several labels an image the
mean of these between yes and no; of numbers how far members differ (Burbidge et al., Active
learning for regression based on query by committee, 2007). Images are taken one by one,
each time the one with the largest product of that and its distance to what is taken already (greedy
k-centre, Gonzalez, Clustering to minimize the maximum intercluster distance, 1985).

Mutual information of bootstrap heads (Houlsby et al. 2011) was measured beside it, and took more
labels: see ``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.combining.shared_backbone import logits_of_features
from finetune.combining.strangeness import of_length_one
from finetune.data.decoding import MAX_PIXELS
from finetune.data.duplicates import join, near_duplicates
from finetune.data.inspection import Inspection
from finetune.errors import DataError, UsageError
from finetune.prediction.answering import predictions_of
from finetune.prediction.feature_space import features_of
from finetune.prediction.inference import predict
from finetune.prediction.predictions import Predictions
from finetune.prediction.predictor import fits_of
from finetune.runtime import device_of
from finetune.tasks import categorical
from finetune.training.classifier import ImageClassifier
from finetune.training.features.store import FeatureStore

LIKELIEST = 9  # classes that an image is shown with, one a key


class Suggestion(NamedTuple):
    """An image to label.

    Attributes:
        path: as it was given.
        score: how much its label would tell: one minus the margin, in [0, 1], of several labels
            the mean of these; of numbers the members' standard deviation over the largest one.
        classes: the likeliest first, at most nine; of numbers the number itself, as text.
        probability: of the first of them; None of numbers.
        guess: what is answered, in words.
        unknown: whether a rule for unknown images says that it is of none.
    """

    path: str
    score: float
    classes: tuple[str, ...]
    probability: float | None
    guess: str
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Suggestions:
    """What to label next.

    Attributes:
        chosen: in the order in which they were taken.
        unknown: those apart that are of no class that was learnt, the strangest first.
        left_out: how many images for which reason.
    """

    chosen: tuple[Suggestion, ...]
    unknown: tuple[Suggestion, ...]
    left_out: dict[str, int]


def suggest_among(
    model: ImageClassifier | Ensemble,
    inspections: Sequence[Inspection],
    *,
    number: int = 50,
    max_pixels: int = MAX_PIXELS,
    store: FeatureStore | None = None,
) -> Suggestions:
    """Choose among unlabelled images.

    Args:
        model: where it is, it runs.
        inspections: of the images, with perceptual hashes.
        number: how many to choose, at least 1; as many unknown ones are named apart.
        max_pixels: most pixels of an image.
        store: where features are looked up, and kept.

    Raises:
        DataError: no image is left to choose from.
        UsageError: numbers of one member, which says nothing of how sure it is.
    """
    if not model.task.has_choices and not (isinstance(model, Ensemble) and len(model.parts) > 1):
        raise UsageError(
            "Expected members that differ to tell which numbers are in doubt, found one alone; "
            "give it several final layers: finetune ensemble RUN --heads 10 --data.root DIR."
        )
    fits = fits_of(model)
    first_of = {each.content_hash: each for each in reversed(inspections) if not each.problem}
    new = [
        each
        for each in inspections
        if first_of.get(each.content_hash) is each
        and not any(fit.knows_id(each.content_hash) for fit in fits)
    ]
    left_out = {
        "that cannot be read": sum(each.problem is not None for each in inspections),
        "of the fit": sum(key not in {i.content_hash for i in new} for key in first_of),
    }
    if not new:
        raise DataError(
            f"Expected images to choose from, found {len(inspections)}, all of them unreadable or "
            "known to the fit; name others."
        )
    paths = [each.path for each in new]
    features = torch.from_numpy(
        features_of(model, paths, max_pixels=max_pixels, store=store).values
    )
    answers = _answers(model, features, paths, max_pixels)
    scores, rule = _worth(answers), Ensemble.of(model).unknown
    strangeness = torch.zeros(len(new)) if rule is None else rule.strangeness(features)
    strange = strangeness > 1
    copies = _lesser_copies(new, scores)
    left_out["that are copies of others"] = int(copies.sum()) + _twice(inspections, first_of)
    taken = spread(scores.masked_fill(copies | strange, -1), features, number)
    apart = strangeness.masked_fill(copies | ~strange, 0).argsort(descending=True)
    apart = apart[: min(number, int((strange & ~copies).sum()))]
    guesses, probabilities = answers.labels, answers.probabilities
    ranked = probabilities.argsort(dim=1, descending=True, stable=True)[:, :LIKELIEST]

    def said(row: int) -> Suggestion:
        names: tuple[str, ...] = (guesses[row],)
        likeliest = None
        if model.task.has_choices:
            names = tuple(model.class_names[index] for index in ranked[row].tolist())
            likeliest = float(probabilities[row].max())
        found = str(paths[row]), float(scores[row]), names, likeliest, guesses[row]
        return Suggestion(*found, unknown=bool(strange[row]))

    return Suggestions(
        tuple(map(said, taken)),
        tuple(map(said, apart.tolist())),
        {reason: count for reason, count in left_out.items() if count},
    )


def informative(probabilities: Tensor) -> Tensor:
    """How much a choice among ``(..., C)`` would tell, ``(...)`` float64: one minus the margin."""
    largest = probabilities.double().topk(2, dim=-1).values
    return 1 - (largest[..., 0] - largest[..., 1])


def spread(scores: Tensor, features: Tensor, number: int) -> list[int]:
    """Rows with high scores ``(N,)`` whose features ``(N, D)`` are far apart; below 0: none.

    Each row in turn has the largest product of its score and its cosine distance to the nearest
    row before it.
    """
    points = of_length_one(features)
    gains, nearest = scores.double().clone(), torch.ones(len(scores), dtype=torch.float64)
    taken: list[int] = []
    for _ in range(min(number, int((scores >= 0).sum()))):
        row = int(torch.where(gains >= 0, gains * nearest, -1.0).max(dim=0).indices)
        taken.append(row)
        gains[row] = -1
        nearest = torch.minimum(nearest, (1 - points @ points[row]).clamp_min(0))
    return taken


def _worth(answers: Predictions) -> Tensor:
    """How much each label would tell, ``(N,)`` float64 in [0, 1]."""
    if not answers.task.has_choices:
        assert answers.disagreement is not None
        return answers.disagreement / answers.disagreement.max().clamp_min(1e-30)
    asked = categorical.probabilities(answers.task.choices(answers.logits.double()))
    return informative(asked).reshape(len(answers), -1).mean(dim=1)


def _answers(
    model: ImageClassifier | Ensemble, features: Tensor, paths: list[Path], max_pixels: int
) -> Predictions:
    """A classifier needs no second pass over the images."""
    if not isinstance(model, ImageClassifier):
        return predict(model, paths, max_pixels=max_pixels)
    with torch.inference_mode():
        logits = logits_of_features(model, features.to(device_of(model)))
    return predictions_of(Ensemble.of(model), (logits.cpu()[None], torch.zeros(len(paths))), paths)


def _lesser_copies(inspections: Sequence[Inspection], scores: Tensor) -> Tensor:
    """Of images that look the same, which are not the one with the highest score, ``(N,)``."""
    lesser = torch.zeros(len(inspections), dtype=torch.bool)
    for group in join(near_duplicates(inspections)):
        lesser[group] = True
        lesser[max(group, key=lambda row: float(scores[row]))] = False
    return lesser


def _twice(inspections: Sequence[Inspection], first_of: dict[str, Inspection]) -> int:
    """How many readable images have the content of an earlier one."""
    return sum(each.problem is None for each in inspections) - len(first_of)
