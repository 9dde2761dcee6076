"""Which members help: greedy selection with replacement on held-out predictions.

Members are added one at a time, the same one as often as it helps, and their counts become
coefficients (Caruana et al., Ensemble selection from libraries of models, 2004). Guards against
overfitting a small held-out set: the search starts from the best few members together, and its
answer is the mean over searches on resampled pictures, and among many members in random halves of
them (the paper's bagging; among few members a half may hold only bad ones). Where that mean lies
above the best member on the pictures that choose, as much of it stays as does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
import torch
from torch import Tensor

from finetune.combining.pooling import fit_coefficients, mean_probabilities
from finetune.errors import UsageError

Metric = Literal["nll", "accuracy", "brier"]

# Images' worth of belief in equal coefficients, against overfitting a small held-out set.
LEARNED_PRIOR = 10.0
SAME = 1e-12  # losses closer than this are a tie
SHARES = tuple(1 - step / 20 for step in range(20))  # of the bags' answer
MANY_MEMBERS = 8  # from here on each bag sees half of the members


@dataclass(frozen=True, slots=True)
class Selection:
    """Coefficients ``(M,)`` that sum to 1, and held-out losses (lower is better).

    Attributes:
        coefficients: 0 for a member that is left out.
        loss: of the selected members together, on the images that selected them.
        best_member: index of the best single member on those images.
        best_loss: its loss; ``loss`` is never above it, beyond rounding.
    """

    coefficients: tuple[float, ...]
    loss: float
    best_member: int
    best_loss: float

    @property
    def members(self) -> tuple[int, ...]:
        """Indexes of the members that stay."""
        return tuple(index for index, value in enumerate(self.coefficients) if value > 0)


def held_out_loss(probabilities: Tensor, labels: Tensor, metric: Metric) -> float:
    """NLL (nats), ``1 - accuracy`` or the Brier score (0 to 2) of ``(N, C)``; lower is better."""
    return float(_losses(probabilities.unsqueeze(0).double(), labels, metric)[0])


def select_members(
    member_probabilities: Tensor,
    labels: Tensor,
    *,
    metric: Metric = "nll",
    rounds: int = 50,
    bags: int = 20,
    max_members: int | None = None,
    costs: Sequence[float] | None = None,
    min_gain: float = 0.0,
    seed: int = 0,
) -> Selection:
    """Select members ``(M, N, C)`` and their coefficients on held-out labels ``(N,)``.

    Args:
        member_probabilities: held-out probabilities of each member.
        labels: their true classes.
        metric: what to lower; ties in accuracy are settled by the NLL.
        rounds: most additions of one search; the best prefix of them is kept.
        bags: searches on resampled pictures, whose coefficients are averaged; 0 searches once on
            all, and then the coefficients are multiples of one over the number of additions.
        max_members: most members to keep.
        costs: time of each member, in any unit; equal ones for None.
        min_gain: least rise of the loss, on leaving out a member of average cost, that keeps it.
        seed: of the resampling.

    Raises:
        UsageError: other numbers of labels or costs than images or members.
    """
    members = member_probabilities.double()
    relative_costs = _relative_costs(costs, len(members))
    if len(labels) != members.shape[1] or len(labels) == 0:
        raise UsageError(
            f"Expected a label for each of at least one image, found {len(labels)} labels for "
            f"{members.shape[1]} images; select on labelled held-out images."
        )
    search = _Search(members, labels, metric, rounds, max_members or len(members))
    best = int(search.single.argmin())
    greedy = search.coefficients(range(len(members)))
    coefficients = greedy if bags == 0 else _as_bagged_as_allowed(search, greedy, bags, seed)
    coefficients = _prune(search, coefficients, relative_costs, min_gain)
    if not search.allows(coefficients):
        coefficients = torch.zeros(len(members), dtype=torch.float64)
        coefficients[best] = 1.0
    return Selection(
        coefficients=tuple(coefficients.tolist()),
        loss=held_out_loss(mean_probabilities(members, coefficients), labels, metric),
        best_member=best,
        best_loss=held_out_loss(members[best], labels, metric),
    )


def choose_coefficients(
    member_probabilities: Tensor,
    labels: Tensor,
    *,
    method: Literal["greedy", "learned"],
    max_members: int | None = None,
    **settings: Any,
) -> Sequence[float]:
    """Coefficients ``(M,)``: of :func:`select_members`, whose settings follow, or learned ones.

    Raises:
        UsageError: a number of members with ``learned``, which keeps as many as it likes.
    """
    if method == "greedy":
        return select_members(
            member_probabilities, labels, max_members=max_members, **settings
        ).coefficients
    if max_members is not None:
        raise UsageError(
            "Expected max_members with method greedy only, found it with learned; leave it out."
        )
    return fit_coefficients(member_probabilities, labels, prior=LEARNED_PRIOR).tolist()


def cross_validated_losses(
    member_probabilities: Tensor,
    labels: Tensor,
    *,
    metric: Metric = "nll",
    folds: int = 5,
    seed: int = 0,
    max_members: int | None = None,
) -> tuple[float, float]:
    """Honest losses of selecting an ensemble and of selecting the best single member.

    Each fold of the held-out images is answered by what the other folds select, so neither loss
    profits from the images that picked.
    """

    def ensemble(members: Tensor, truth: Tensor) -> Sequence[float]:
        return select_members(
            members, truth, metric=metric, seed=seed, max_members=max_members
        ).coefficients

    def single(members: Tensor, truth: Tensor) -> Sequence[float]:
        losses = _losses(members.double(), truth, metric)
        return torch.nn.functional.one_hot(losses.argmin(), len(members)).double().tolist()

    combined, alone = (
        held_out_loss(
            cross_validated_answers(member_probabilities, labels, choose, folds=folds, seed=seed),
            labels,
            metric,
        )
        for choose in (ensemble, single)
    )
    return combined, alone


def cross_validated_answers(
    member_probabilities: Tensor,
    labels: Tensor,
    choose: Callable[[Tensor, Tensor], Sequence[float]],
    *,
    folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """Pooled answers ``(N, C)`` of which none profits from the choice of the coefficients.

    Args:
        member_probabilities: ``(M, N, C)``, held out.
        labels: ``(N,)``.
        choose: coefficients ``(M,)`` from some images' answers ``(M, n, C)`` and labels ``(n,)``;
            what it makes of the other folds answers for each fold.
        folds: how many, of equal size.
        seed: of the assignment to folds.

    Raises:
        UsageError: fewer than two images.
    """
    if len(labels) < 2:
        raise UsageError(f"Expected two held-out images or more, found {len(labels)}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    answers = torch.empty_like(member_probabilities[0])
    for fold in range(min(folds, len(labels))):
        inside = torch.from_numpy(np.sort(order[fold::folds]))
        outside = torch.from_numpy(np.setdiff1d(order, inside.numpy()))
        coefficients = choose(member_probabilities[:, outside], labels[outside])
        answers[inside] = mean_probabilities(member_probabilities[:, inside], coefficients)
    return answers


class _Search:
    """One greedy search; holds what every round needs."""

    def __init__(
        self, members: Tensor, labels: Tensor, metric: Metric, rounds: int, max_members: int
    ) -> None:
        if metric == "nll":  # only the true class matters, which saves a factor C
            members = members[:, torch.arange(len(labels)), labels].unsqueeze(-1)
            labels = torch.zeros_like(labels)
        self.members, self.labels, self.metric = members, labels, metric
        self.rounds, self.max_members = rounds, max_members
        self.single = self._scores(members)

    def on(self, rows: Tensor) -> _Search:
        """The same search on some of the pictures."""
        search = copy(self)
        search.members, search.labels = self.members[:, rows], self.labels[rows]
        search.single = search._scores(search.members)
        return search

    def _scores(self, candidates: Tensor) -> Tensor:
        scores = _losses(candidates, self.labels, self.metric)
        if self.metric == "accuracy":
            scores = scores + 1e-6 * _losses(candidates, self.labels, "nll")
        return scores

    def loss(self, coefficients: Tensor) -> float:
        """Of the members' mean with these coefficients."""
        return float(self._scores(mean_probabilities(self.members, coefficients).unsqueeze(0))[0])

    def allows(self, coefficients: Tensor) -> bool:
        """Whether the members' mean is no worse than the best single member; ties in the metric are
        settled in favour of several members, which err less on other pictures.
        """
        pooled = mean_probabilities(self.members, coefficients).unsqueeze(0)
        least = float(_losses(self.members, self.labels, self.metric).min())
        return float(_losses(pooled, self.labels, self.metric)[0]) <= least + SAME

    def coefficients(self, allowed: Sequence[int]) -> Tensor:
        """Counts over additions, ``(M,)``, of the best prefix of one search among ``allowed``."""
        counts, total, best_loss = self._start(allowed)
        best = counts.clone()
        outside = torch.ones(len(self.members), dtype=torch.bool)
        outside[list(allowed)] = False
        for _ in range(self.rounds):
            number = int(counts.sum())
            losses = self._scores((total + self.members) / (number + 1))
            losses[outside] = math.inf
            if int((counts > 0).sum()) >= self.max_members:
                losses[counts == 0] = math.inf
            tied = losses <= losses.min() + SAME
            # Among equals one that is in already: fewer members, the same answer.
            familiar = tied & (counts > 0)
            chosen = int((familiar if bool(familiar.any()) else tied).nonzero()[0])
            counts[chosen] += 1
            total = total + self.members[chosen]
            if float(losses[chosen]) < best_loss - SAME:
                best, best_loss = counts.clone(), float(losses[chosen])
        return best / best.sum()

    def _start(self, allowed: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """The best prefix of the members sorted by their own loss, each once."""
        order = sorted(allowed, key=lambda index: (float(self.single[index]), index))
        order = order[: self.max_members]
        sums = self.members[order].cumsum(dim=0)
        sizes = torch.arange(1, len(order) + 1, dtype=torch.float64).view(-1, 1, 1)
        losses = self._scores(sums / sizes)
        size = int((losses <= losses.min() + SAME).nonzero()[0]) + 1
        counts = torch.zeros(len(self.members), dtype=torch.float64)
        counts[order[:size]] = 1
        return counts, sums[size - 1], float(losses[size - 1])


def _as_bagged_as_allowed(search: _Search, greedy: Tensor, bags: int, seed: int) -> Tensor:
    """The bags' answer, or as much of it beside the plain search's as the best member allows.

    Where few pictures choose, the best single member is best by chance too, and the bags' answer,
    though better on other pictures, often lies a little above it. The plain search starts at that
    member and is never above it.
    """
    bagged = _bagged(search, bags, seed)
    mixtures = (share * bagged + (1 - share) * greedy for share in SHARES)
    return next((mixture for mixture in mixtures if search.allows(mixture)), greedy)


def _bagged(search: _Search, bags: int, seed: int) -> Tensor:
    generator = np.random.default_rng(seed)
    members, images = len(search.members), len(search.labels)
    size = math.ceil(members / 2) if members >= MANY_MEMBERS else members
    total = torch.zeros(members, dtype=torch.float64)
    for _ in range(bags):
        allowed = sorted(generator.choice(members, size=size, replace=False).tolist())
        rows = torch.from_numpy(generator.integers(images, size=images))
        total += search.on(rows).coefficients(allowed)
    return total / total.sum()


def _prune(search: _Search, coefficients: Tensor, costs: Tensor, min_gain: float) -> Tensor:
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


def _without(coefficients: Tensor, index: int) -> Tensor:
    rest = coefficients.clone()
    rest[index] = 0.0
    return rest / rest.sum()


def _relative_costs(costs: Sequence[float] | None, members: int) -> Tensor:
    if costs is None:
        return torch.ones(members, dtype=torch.float64)
    values = torch.tensor([float(cost) for cost in costs], dtype=torch.float64)
    if len(values) != members or bool((values <= 0).any()):
        raise UsageError(
            f"Expected a cost above 0 for each of {members} members, found {values.tolist()}; "
            "give the seconds that each takes."
        )
    return values / values.mean()


def _losses(candidates: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """``(K, N, C)`` to ``(K,)``."""
    images = torch.arange(len(labels))
    match metric:
        case "nll":
            true = candidates[:, images, labels]
            return -true.clamp_min(torch.finfo(torch.float64).tiny).log().mean(dim=-1)
        case "accuracy":
            return (candidates.argmax(dim=-1) != labels).double().mean(dim=-1)
        case "brier":
            truth = torch.nn.functional.one_hot(labels, candidates.shape[-1]).double()
            return (candidates - truth).square().sum(dim=-1).mean(dim=-1)
        case _:
            assert_never(metric)
