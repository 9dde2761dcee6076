"""How unsure an ensemble is of each image, and why: unsure members, or members at odds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.combining.pooling import Coefficients, mean_probabilities
from finetune.tasks import categorical


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Five numbers an image, each of shape ``(N,)``; entropies in nats.

    Attributes:
        entropy: of the mean probabilities; at most log C.
        expected_entropy: the members' mean entropy: noise that no member can resolve.
        mutual_information: ``entropy - expected_entropy``, at least 0: what the members do not
            agree about, and more training data could settle.
        disagreement: share of the pairs of members that name different classes, in [0, 1];
            0 for one member.
        variation_ratio: share of the members that do not name the most named class, in [0, 1).

    Source: Depeweg et al., Decomposition of uncertainty in Bayesian deep learning, 2018.
    """

    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    disagreement: Tensor
    variation_ratio: Tensor


def uncertainty(member_probabilities: Tensor, coefficients: Coefficients = None) -> Uncertainty:
    """The uncertainty of the mean of ``(M, N, C)`` probabilities, image by image, in float64.

    Where an image is asked Q questions, ``(M, N, Q, C)``, it is their mean. Entropies weigh the
    members by their coefficients; disagreement and variation ratio count members.
    """
    members = member_probabilities.double()
    total = entropy(mean_probabilities(members, coefficients))
    # The expectation is itself a mean over members, so the same weights apply.
    expected = mean_probabilities(entropy(members).unsqueeze(-1), coefficients).squeeze(-1)
    votes = vote_counts(members)
    count = len(members)
    agreeing_pairs = (votes * (votes - 1)).sum(dim=-1)
    pairs = max(count * (count - 1), 1)
    disagreement = 1 - agreeing_pairs / pairs if count > 1 else torch.zeros_like(total)
    variation = 1 - votes.amax(dim=-1) / count
    each = (total, expected, (total - expected).clamp_min(0.0), disagreement, variation)
    return Uncertainty(*(values.unsqueeze(-1).flatten(1).mean(dim=1) for values in each))


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last dimension; ``0 log 0`` is 0."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)


def vote_counts(member_probabilities: Tensor) -> Tensor:
    """Members that name each class: ``(M, N, C)`` to float64 counts ``(N, C)``."""
    return categorical.votes(member_probabilities).sum(dim=0).double()
