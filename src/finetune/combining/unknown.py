"""When to say that an image is of no class that was learnt, with a guaranteed rate of false alarms.

Which score, the training images decide: each class in turn is left out and has to be told from the
others. Where the line is, held-out images decide, by a conformal p-value: an image is unknown if
its p-value, the share of held-out images that are at least as strange, is at most alpha. Of known
images that are exchangeable with those that calibrate, at most a share alpha is then refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import beta, betabinom
from torch import Tensor
from torch.nn.functional import one_hot

from finetune.combining.conformal import conformal_quantile
from finetune.combining.strangeness import SCORES, Familiar, Fit, doubt
from finetune.errors import CalibrationError
from finetune.evaluation.separation import auroc_interval, separation
from finetune.spec.choices import Strangeness
from finetune.training.linear_probe import fit_probe

MOST_LEFT_OUT = 12  # classes that are left out in turn
MOST_JUDGED = 2000  # training images that choose the score


@dataclass(frozen=True, slots=True)
class UnknownRule:
    """Which images to call unknown.

    Attributes:
        familiar: what was learnt from, and the distance from it.
        alpha: most of the known images that may be refused, a share in (0, 1).
        threshold: the largest distance that is not refused.
        images: how many known images were held out to find it.
        auroc: of telling a class that was left out from the others, on training images, with the
            ends of its 95 % interval; ``(estimate, low, high)``. None where nothing can be left
            out, as of numbers.
    """

    familiar: Familiar
    alpha: float
    threshold: float
    images: int
    auroc: tuple[float, float, float] | None

    def strangeness(self, features: Tensor) -> Tensor:
        """Distances of features ``(N, D)`` over the threshold, ``(N,)``: above 1 is unknown."""
        return self.familiar.distances(features) / max(self.threshold, 1e-12)

    @property
    def false_alarms(self) -> tuple[float, float]:
        """Within which shares of known images lies, at 95 %, how many this very line refuses.

        The guarantee is about the mean over draws of the images that calibrate.
        """
        low, high = beta.interval(0.95, *self._refused)
        return float(low), float(high)

    def drift_p_value(self, unknown: int, images: int) -> float:
        """How likely known images, so many of them, have at least so many called unknown.

        Exact for images that are exchangeable with those that calibrated: their share is
        beta-distributed over draws of the latter, so the number is beta-binomial.
        """
        return float(betabinom.sf(unknown - 1, images, *self._refused)) if unknown else 1.0

    @property
    def _refused(self) -> tuple[int, int]:
        """Parameters of the beta distribution of the share of known images that are refused."""
        above = max(1, math.floor(round((self.images + 1) * self.alpha, 9)))
        return above, self.images + 1 - above

    def to_entry(self) -> dict[str, Any]:
        """Plain values and three float32 tensors, for a checkpoint."""
        familiar = {each.name: getattr(self.familiar, each.name) for each in fields(Familiar)}
        return {
            **familiar,
            "alpha": self.alpha,
            "threshold": self.threshold,
            "images": self.images,
            "auroc": None if self.auroc is None else list(self.auroc),
        }

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any] | None) -> UnknownRule | None:
        """The inverse of :meth:`to_entry`; None of nothing."""
        if entry is None:
            return None
        auroc = entry["auroc"]
        return cls(
            Familiar(**{each.name: entry[each.name] for each in fields(Familiar)}),
            entry["alpha"],
            entry["threshold"],
            entry["images"],
            None if auroc is None else (auroc[0], auroc[1], auroc[2]),
        )


def fit_unknown(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    *,
    alpha: float,
    having: Tensor | None = None,
) -> UnknownRule:
    """A rule for a network whose features of training images are ``(N, D)``, of classes ``(N,)``.

    Args:
        features, labels: of the training images.
        held_out: features ``(M, D)`` of known images that neither trained nor were looked at.
        alpha: accepted share of false alarms.
        having: see :func:`chosen_by_left_out`; with K = 0 nothing can be left out, and near images
            are what is compared with.

    Raises:
        CalibrationError: too few images, or features that are not finite.
    """
    least = math.ceil(round(1 / alpha, 9)) - 1 if 0 < alpha < 1 else 1
    if len(held_out) < least:
        raise CalibrationError(
            f"Expected at least {least} images to calibrate --unknown {alpha:g}, found "
            f"{len(held_out)}; take --share all or a larger share, or hold out more."
        )
    if not bool(features.isfinite().all() and held_out.isfinite().all()):
        raise CalibrationError(
            "Expected finite features to know images by, found NaN or infinity; fit again."
        )
    chosen: Strangeness = "neighbours"
    auroc = None
    if having is None or having.shape[1]:
        tried = chosen_by_left_out(features, labels, having)
        chosen, auroc = max(tried.items(), key=lambda item: item[1][0])
    familiar = SCORES[chosen](features, labels)
    threshold = conformal_quantile(familiar.distances(held_out), alpha)
    return UnknownRule(familiar, alpha, threshold, len(held_out), auroc)


def chosen_by_left_out(
    features: Tensor, labels: Tensor, having: Tensor | None = None
) -> dict[Strangeness, tuple[float, float, float]]:
    """Of each score the AUROC of classes left out in turn, the mean, and its 95 % interval.

    Half of the training images is learnt from, without the class, and the other half judged; then
    the other way round. Halves are in the images' order, so that bursts stay together.

    Args:
        features, labels: of the training images; of several labels each set of them is a class.
        having: ``(N, K)`` bool, which of K labels each image has; then these are left out in turn,
            and a probe of the sets, many of them rare, is no score. None: classes are.

    Raises:
        CalibrationError: not two classes with two images each.
    """
    order = labels.argsort(stable=True)
    order = order[:: max(1, math.ceil(len(order) / MOST_JUDGED))]
    features, labels = features[order], labels[order]
    classes, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    ranks = torch.cat([torch.arange(int(count)) for count in counts])
    # What is there once stands in either half.
    first = torch.where(counts[index] == 1, index % 2 == 0, ranks < counts[index] / 2)
    strange = one_hot(index).bool() if having is None else having[order]
    number = strange.shape[1]
    places = torch.linspace(0, number - 1, min(number, MOST_LEFT_OUT)).long()
    cases = [
        case
        for learnt in (first, ~first)
        for left_out in places.tolist()
        if (case := _case(strange[:, left_out], learnt)) is not None
    ]
    if not cases:
        raise CalibrationError(
            f"Expected two classes with two training images each to tell unknown images, found "
            f"{len(features)} images of {len(classes)} classes; give --data.root of the fit."
        )
    scores = dict(SCORES)
    by_class = having is None
    if by_class and all(len(torch.unique(labels[case.fitted])) > 1 for case in cases):
        # One penalty for all: it is chosen by a cross-validation of its own.
        l2 = fit_probe(features, index, len(classes)).l2
        scores["doubt"] = partial(doubt, l2=l2)
    else:
        del scores["doubt"]  # there is none between one class and itself
    found: dict[Strangeness, tuple[float, float, float]] = {}
    for score, fit in scores.items():
        trials = [_trial(fit, features, labels, case) for case in cases]
        influence = np.mean([trial.influence for trial in trials], axis=0)
        area = float(np.mean([trial.auroc for trial in trials]))
        fewest = min(trial.strangers for trial in trials) * len(trials)
        found[score] = (area, *auroc_interval(area, float((influence**2).sum()), fewest))
    return found


class _Trial(NamedTuple):
    """One class left out: how well it was told, and what each training image had to do with it."""

    auroc: float
    influence: np.ndarray
    strangers: int


class _Case(NamedTuple):
    """Which training images are learnt from, and which are judged, where a class is left out."""

    fitted: Tensor
    strangers: Tensor
    known: Tensor


def _case(strange: Tensor, learnt: Tensor) -> _Case | None:
    """None where a side would be empty."""
    case = _Case(learnt & ~strange, ~learnt & strange, ~learnt & ~strange)
    return case if all(bool(side.any()) for side in case) else None


def _trial(fit: Fit, features: Tensor, labels: Tensor, case: _Case) -> _Trial:
    familiar = fit(features[case.fitted], labels[case.fitted])
    strangers, known = (familiar.distances(features[rows]).numpy() for rows in case[1:])
    told = separation(strangers, known)
    influence = np.zeros(len(labels))
    influence[case.strangers.numpy()], influence[case.known.numpy()] = told.strangers, told.known
    return _Trial(told.auroc, influence, len(strangers))
