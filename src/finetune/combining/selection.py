"""Which members help: greedy selection with replacement on held-out predictions.

Members are added one at a time, the same one as often as it helps, and their counts become
coefficients (Caruana et al., Ensemble selection from libraries of models, 2004). Guards against
overfitting a small held-out set: the search starts from the best few members together, and its
answer is the mean over searches on resampled images, and among many members in random halves of
them (the paper's bagging; among few members a half may hold only bad ones). Where that mean lies
above the best member on the images that choose, as much of it stays as does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from finetune.combining.greedy_search import SAME, Search, as_bagged_as_allowed, prune
from finetune.combining.pooling import check_pooling, fit_coefficients, pool
from finetune.errors import UsageError
from finetune.spec.choices import Pooling
from finetune.tasks.held_out_loss import Measure, held_out_loss
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task

# Images' worth of belief in equal coefficients, against overfitting a small held-out set.
LEARNED_PRIOR = 10.0


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


def select_members(
    member_logits: Tensor,
    labels: Tensor,
    *,
    metric: Measure = "nll",
    pooling: Pooling = "mean",
    rounds: int = 50,
    bags: int = 20,
    max_members: int | None = None,
    costs: Sequence[float] | None = None,
    min_gain: float = 0.0,
    seed: int = 0,
) -> Selection:
    """Select members ``(M, N, C)`` and their coefficients on held-out labels ``(N,)``.

    Args:
        member_logits: held-out logits of each member; rows of any task.
        labels: their true classes.
        metric: what to lower; ties in accuracy are decided by the NLL. Of numbers ``mae``.
        pooling: how the members' answers will be combined.
        rounds: most additions of one search; the best prefix of them is kept.
        bags: searches on resampled images, whose coefficients are averaged; 0 searches once on
            all, and then the coefficients are multiples of one over the number of additions.
        max_members: most members to keep.
        costs: time of each member, in any unit; equal ones for None.
        min_gain: least rise of the loss, on leaving out a member of average cost, that keeps it.
        seed: of the resampling.

    Raises:
        UsageError: other numbers of labels or costs than images or members, or a metric of
            probabilities for votes.
    """
    _check(member_logits, labels, metric, pooling)
    members = member_logits.double()
    relative_costs = _relative_costs(costs, len(members))
    search = Search(
        members,
        labels,
        metric=metric,
        pooling=pooling,
        rounds=rounds,
        max_members=max_members or len(members),
    )
    greedy = search.coefficients(range(len(members)))
    coefficients = greedy if bags == 0 else as_bagged_as_allowed(search, greedy, bags, seed)
    coefficients = prune(search, coefficients, relative_costs, min_gain)
    best = int(search.single.argmin())
    best_loss = held_out_loss(members[best], labels, metric)
    task = REGRESSION if metric == "mae" else MULTICLASS
    loss = held_out_loss(pool(task, members, coefficients, method=pooling), labels, metric)
    # Pruning may lose what a member gave, and the search settles tied votes only nearly so.
    if loss > best_loss + SAME:
        alone = torch.tensor(best)
        coefficients, loss = torch.nn.functional.one_hot(alone, len(members)), best_loss
    return Selection(
        coefficients=tuple(coefficients.double().tolist()),
        loss=loss,
        best_member=best,
        best_loss=best_loss,
    )


def choose_coefficients(
    member_logits: Tensor,
    labels: Tensor,
    *,
    method: Literal["greedy", "learned"],
    pooling: Pooling = "mean",
    metric: Measure = "nll",
    max_members: int | None = None,
    **settings: Any,
) -> Sequence[float]:
    """Coefficients ``(M,)``: of :func:`select_members`, whose settings follow, or learned ones.

    Raises:
        UsageError: a number of members with ``learned``, which keeps as many as it likes, or
            another pooling than the mean, whose likelihood it is that learned ones raise, or
            numbers, which have none.
    """
    if method == "greedy":
        return select_members(
            member_logits,
            labels,
            metric=metric,
            pooling=pooling,
            max_members=max_members,
            **settings,
        ).coefficients
    if metric == "mae":
        raise UsageError(
            "Expected --select greedy or all for numbers, found learned, which raises a "
            "likelihood that numbers have not; take greedy."
        )
    if pooling != "mean":
        raise UsageError(
            f"Expected pooling mean with method learned, found {pooling}; select greedy members."
        )
    if max_members is not None:
        raise UsageError(
            "Expected max_members with method greedy only, found it with learned; leave it out."
        )
    return fit_coefficients(member_logits, labels, prior=LEARNED_PRIOR).tolist()


def cross_validated_answers(
    task: Task,
    member_logits: Tensor,
    labels: Tensor,
    choose: Callable[[Tensor, Tensor], Sequence[float]],
    *,
    pooling: Pooling = "mean",
    folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """Pooled logits ``(N, C)`` of which none profits from the choice of the coefficients.

    Args:
        task: of the members.
        member_logits: ``(M, N, C)``, held out.
        labels: ``(N,)``.
        choose: coefficients ``(M,)`` from some images' answers ``(M, n, C)`` and labels ``(n,)``;
            what it makes of the other folds answers for each fold.
        pooling: how the members' answers are combined.
        folds: how many, of equal size.
        seed: of the assignment to folds.

    Raises:
        UsageError: fewer than two images.
    """
    if len(labels) < 2:
        raise UsageError(f"Expected two held-out images or more, found {len(labels)}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    answers = torch.empty_like(member_logits[0], dtype=torch.float64)
    for fold in range(min(folds, len(labels))):
        inside = torch.from_numpy(np.sort(order[fold::folds]))
        outside = torch.from_numpy(np.setdiff1d(order, inside.numpy()))
        coefficients = choose(member_logits[:, outside], labels[outside])
        inner = member_logits[:, inside]
        answers[inside] = pool(task, inner, coefficients, method=pooling).double()
    return answers


def _check(member_logits: Tensor, labels: Tensor, metric: Measure, pooling: Pooling) -> None:
    check_pooling(REGRESSION if metric == "mae" else MULTICLASS, pooling)
    if pooling == "vote" and metric != "accuracy":
        raise UsageError(
            f"Expected metric accuracy for a vote, whose shares are no probabilities, found "
            f"{metric}; select by accuracy, or pool by mean or geometric."
        )
    images = member_logits.shape[1]
    if len(labels) != images or images == 0:
        raise UsageError(
            f"Expected a label for each of at least one image, found {len(labels)} labels for "
            f"{images} images; select on labelled held-out images."
        )


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
