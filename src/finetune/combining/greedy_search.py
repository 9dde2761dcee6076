"""The search behind greedy selection: one pass over held-out images, many of them, and pruning.

Each way of pooling is a mean of something: of probabilities, of their logarithms, of votes. So a
round of the search adds one summand an image, and what it looks at is what the ensemble will say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from finetune.combining.pooling import likelihood_ratios
from finetune.spec.choices import Pooling
from finetune.tasks import categorical
from finetune.tasks.held_out_loss import Measure, held_out_losses

SAME = 1e-12  # losses closer than this are a tie
SHARES = tuple(1 - step / 20 for step in range(20))  # of the bags' answer
MANY_MEMBERS = 8  # from here on each bag sees half of the members
TIED_VOTES = 1e-4  # how much of a vote is the member's probabilities, which settle ties


class Search:
    """Greedy searches among members ``(M, N, C)``; holds what every round needs.

    Args:
        members: their held-out logits.
        labels: ``(N,)``.
        metric: what to lower; ties in accuracy are decided by the NLL.
        pooling: how the selected members' answers will be combined.
        rounds: most additions; the best prefix of them is kept.
        max_members: most members to keep.
    """

    def __init__(
        self,
        members: Tensor,
        labels: Tensor,
        *,
        metric: Measure,
        pooling: Pooling,
        rounds: int,
        max_members: int,
    ) -> None:
        if metric == "nll" and pooling == "mean":  # only the true class matters: a factor C less
            self.summands = likelihood_ratios(members, labels).unsqueeze(-1)
            labels = torch.zeros_like(labels)
        else:
            members = members.double()
            self.summands = members if metric == "mae" else _summands(members, pooling)
        self.labels, self.metric, self.pooling = labels, metric, pooling
        self.rounds, self.max_members = rounds, max_members
        self.single = self._scores(self.summands)

    def on(self, rows: Tensor) -> Search:
        """The same search on some of the images."""
        search = copy(self)
        search.summands, search.labels = self.summands[:, rows], self.labels[rows]
        search.single = search._scores(search.summands)
        return search

    def loss(self, coefficients: Tensor) -> float:
        """Of the members together, with these coefficients ``(M,)``."""
        return float(self._scores(self._mean(coefficients))[0])

    def allows(self, coefficients: Tensor) -> bool:
        """Whether the members together are no worse than the best single one; ties in the metric
        are decided in favour of several members, which err less on other images.
        """
        least = float(self._losses(self.summands, self.metric).min())
        return float(self._losses(self._mean(coefficients), self.metric)[0]) <= least + SAME

    def coefficients(self, allowed: Sequence[int]) -> Tensor:
        """Counts over additions, ``(M,)``, of the best prefix of one search among ``allowed``."""
        counts, total, best_loss = self._start(allowed)
        best = counts.clone()
        outside = torch.ones(len(self.summands), dtype=torch.bool)
        outside[list(allowed)] = False
        for _ in range(self.rounds):
            number = int(counts.sum())
            losses = self._scores((total + self.summands) / (number + 1))
            losses[outside] = math.inf
            if int((counts > 0).sum()) >= self.max_members:
                losses[counts == 0] = math.inf
            tied = losses <= losses.min() + SAME
            # Among equals one that is in already: fewer members, the same answer.
            familiar = tied & (counts > 0)
            chosen = int((familiar if bool(familiar.any()) else tied).nonzero()[0])
            counts[chosen] += 1
            total = total + self.summands[chosen]
            if float(losses[chosen]) < best_loss - SAME:
                best, best_loss = counts.clone(), float(losses[chosen])
        return best / best.sum()

    def _start(self, allowed: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """The best prefix of the members sorted by their own loss, each once."""
        order = sorted(allowed, key=lambda index: (float(self.single[index]), index))
        order = order[: self.max_members]
        sums = self.summands[order].cumsum(dim=0)
        sizes = torch.arange(1, len(order) + 1, dtype=torch.float64).view(-1, 1, 1)
        losses = self._scores(sums / sizes)
        size = int((losses <= losses.min() + SAME).nonzero()[0]) + 1
        counts = torch.zeros(len(self.summands), dtype=torch.float64)
        counts[order[:size]] = 1
        return counts, sums[size - 1], float(losses[size - 1])

    def _mean(self, coefficients: Tensor) -> Tensor:
        return torch.einsum("m,mnc->nc", coefficients, self.summands).unsqueeze(0)

    def _losses(self, means: Tensor, metric: Measure) -> Tensor:
        if metric == "mae":
            return held_out_losses(means, self.labels, metric)
        if self.pooling != "geometric" and metric == "nll":  # leave the other classes alone
            true = means[:, torch.arange(len(self.labels)), self.labels]
            return -true.clamp_min(torch.finfo(torch.float64).tiny).log().mean(dim=-1)
        logits = means if self.pooling == "geometric" else categorical.log_of(means)
        return held_out_losses(logits, self.labels, metric)

    def _scores(self, means: Tensor) -> Tensor:
        scores = self._losses(means, self.metric)
        if self.metric == "accuracy":
            scores = scores + 1e-6 * self._losses(means, "nll")
        return scores


def as_bagged_as_allowed(search: Search, greedy: Tensor, bags: int, seed: int) -> Tensor:
    """The bags' answer, or as much of it beside the plain search's as the best member allows.

    Where few images choose, the best single member is best by chance too, and the bags' answer,
    though better on other images, often lies a little above it. The plain search starts at that
    member and is never above it.
    """
    bagged = _bagged(search, bags, seed)
    mixtures = (share * bagged + (1 - share) * greedy for share in SHARES)
    return next((mixture for mixture in mixtures if search.allows(mixture)), greedy)


def prune(search: Search, coefficients: Tensor, costs: Tensor, min_gain: float) -> Tensor:
    """Leave out, one at a time, what is too many or adds less than its time is worth."""
    while int((coefficients > 0).sum()) > 1:
        now = search.loss(coefficients)
        worth = {}
        for index in coefficients.nonzero().flatten().tolist():
            rise = search.loss(_without(coefficients, index)) - now
            worth[index] = rise / float(costs[index])
        least = min(worth, key=lambda index: worth[index])
        too_many = int((coefficients > 0).sum()) > search.max_members
        if not too_many and (min_gain <= 0 or worth[least] >= min_gain):
            break
        coefficients = _without(coefficients, least)
    return coefficients


def _bagged(search: Search, bags: int, seed: int) -> Tensor:
    generator = np.random.default_rng(seed)
    members, images = len(search.summands), len(search.labels)
    size = math.ceil(members / 2) if members >= MANY_MEMBERS else members
    total = torch.zeros(members, dtype=torch.float64)
    for _ in range(bags):
        allowed = sorted(generator.choice(members, size=size, replace=False).tolist())
        rows = torch.from_numpy(generator.integers(images, size=images))
        total += search.on(rows).coefficients(allowed)
    return total / total.sum()


def _without(coefficients: Tensor, index: int) -> Tensor:
    rest = coefficients.clone()
    rest[index] = 0.0
    return rest / rest.sum()


def _summands(members: Tensor, pooling: Pooling) -> Tensor:
    match pooling:
        case "mean":
            return categorical.probabilities(members)
        case "geometric":
            return categorical.log_probabilities(members)
        case "vote":
            shares = TIED_VOTES * categorical.probabilities(members)
            return (1 - TIED_VOTES) * categorical.votes(members) + shares
        case _:
            assert_never(pooling)
