"""How strange an image is to a classifier: how far its features lie from those of training.

Two distances of features of length 1: the Mahalanobis distance to the nearest class mean, with
one covariance for all classes (Lee et al., A simple unified framework for detecting
out-of-distribution samples, 2018; lengths as in Mueller & Hein, Mahalanobis++, 2025), and the
cosine distance to a near training image (Sun et al., Out-of-distribution detection with deep
nearest neighbors, 2022). And the doubt of a linear probe on the same features, minus the logarithm
of its largest probability (Hendrycks & Gimpel, A baseline for detecting misclassified and
out-of-distribution examples, 2017), which knows best what resembles a known class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.errors import CheckpointMismatchError
from finetune.spec.choices import Strangeness
from finetune.tasks import categorical
from finetune.training.linear_probe import fit_probe

NEAREST = 3  # which neighbour's distance counts: one may be a copy
MOST_ROWS = 4096  # training images that are kept to be neighbours, so that files stay small


@dataclass(frozen=True, slots=True)
class Familiar:
    """What the training images looked like to the network, and how far from it others are.

    Attributes:
        score: which of the three.
        rows: ``(K, D)`` float32: the means of the classes, training images, or a probe's weights.
        directions: ``(R, D)`` float32, of ``mahalanobis``: along these the images of a class vary
            more than elsewhere, so that distances count less; else ``(0, D)``.
        offsets: ``(K,)`` float32, of ``doubt``: the probe's bias.
        floor: of ``mahalanobis``, what a squared distance is multiplied by in all directions.
    """

    score: Strangeness
    rows: Tensor
    directions: Tensor
    offsets: Tensor
    floor: float = 1.0

    def distances(self, features: Tensor) -> Tensor:
        """How far features ``(N, D)`` lie from all that is known, ``(N,)`` float64, at least 0.

        Raises:
            CheckpointMismatchError: features of another width.
        """
        if features.shape[1] != self.rows.shape[1]:
            raise CheckpointMismatchError(
                f"Expected {self.rows.shape[1]} features an image, as the rule for unknown images "
                f"was fitted to, found {features.shape[1]}; calibrate with --unknown again."
            )
        rows = self.rows.double()
        if self.score == "doubt":
            logits = features.double() @ rows.T + self.offsets.double()
            return -categorical.log_probabilities(logits).amax(dim=1).clamp_max(0)
        points = of_length_one(features)
        if self.score == "neighbours":
            cosines = points @ rows.T
            return (1 - cosines.topk(min(NEAREST, len(rows))).values[:, -1]).clamp_min(0)
        directions = self.directions.double()
        everywhere = self.floor * torch.cdist(points, rows).square()
        along = torch.cdist(points @ directions.T, rows @ directions.T).square()
        return (everywhere - along).amin(dim=1).clamp_min(0).sqrt()


def of_length_one(features: Tensor) -> Tensor:
    """Features ``(N, D)`` divided by their lengths, in float64."""
    return torch.nn.functional.normalize(features.double(), dim=1)


def class_means(features: Tensor, labels: Tensor) -> Familiar:
    """The Mahalanobis score of training features ``(N, D)`` with classes ``(N,)``.

    The covariance within classes is shrunk to a multiple of the identity, for there are often fewer
    images than features (Chen et al., Shrinkage algorithms for MMSE covariance estimation, 2010).
    """
    points = of_length_one(features)
    index = torch.unique(labels, return_inverse=True)[1]
    sums = torch.zeros(int(index.max()) + 1, points.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, index, points) / index.bincount()[:, None]
    _, singular, directions = torch.linalg.svd(points - means[index], full_matrices=False)
    count, width = points.shape
    variances = singular.square() / count
    level = max(float(variances.sum()) / width, 1e-12)
    shrinkage = _shrinkage(variances, count, width)
    floor = 1 / max(shrinkage * level, 1e-9 * level)
    along = floor - 1 / ((1 - shrinkage) * variances + 1 / floor)
    scaled = directions * along.clamp_min(0).sqrt()[:, None]
    nothing = torch.zeros(len(means))
    return Familiar("mahalanobis", means.float(), scaled.float(), nothing, floor)


def near_images(features: Tensor, labels: Tensor) -> Familiar:
    """The score of the nearest neighbours among training features ``(N, D)``."""
    points = of_length_one(features).float()
    if len(points) > MOST_ROWS:  # evenly, class by class
        order = labels.argsort(stable=True)
        points = points[order[torch.linspace(0, len(points) - 1, MOST_ROWS).long()]]
    return Familiar("neighbours", points, points[:0], torch.zeros(len(points)))


def doubt(features: Tensor, labels: Tensor, *, l2: float | None = None) -> Familiar:
    """The score of a linear probe on training features ``(N, D)``; ``l2`` is chosen for None."""
    classes, index = torch.unique(labels, return_inverse=True)
    probe = fit_probe(features, index, len(classes), l2=l2)
    weight = probe.weight.float()
    return Familiar("doubt", weight, weight[:0], probe.bias.float())


Fit = Callable[[Tensor, Tensor], Familiar]
SCORES: dict[Strangeness, Fit] = {
    "mahalanobis": class_means,
    "neighbours": near_images,
    "doubt": doubt,
}


def _shrinkage(variances: Tensor, count: int, width: int) -> float:
    """How far towards the identity, in [0, 1]: the oracle approximating shrinkage."""
    level = float(variances.sum()) / width
    square = float(variances.square().sum()) / width**2
    if square == 0:
        return 1.0
    denominator = (count + 1) * (square - level**2 / width)
    return 1.0 if denominator <= 0 else min(1.0, (square + level**2) / denominator)
