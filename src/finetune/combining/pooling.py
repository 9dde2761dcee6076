"""The members' answers into one: outputs ``(M, N, K)`` to outputs ``(N, K)``.

M members, N images, K outputs of the task; of one class an image they are logits ``(N, C)``, log
probabilities among them, so no answer is too sure to be told from certainty. What is pooled is
float64. Coefficients are normalised; a member with all of the weight is returned
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from finetune.combining.averaging import normalised_coefficients
from finetune.errors import UsageError
from finetune.spec.choices import Pooling
from finetune.tasks import categorical
from finetune.tasks.task import Task

Coefficients = Sequence[float] | Tensor | None

TOLERANCE = 1e-6  # of the NLL that coefficients are fitted by
MAX_ROUNDS = 5000
# Shares of the votes that are closer than this are a tie.
TIE = 1e-3


def pool(
    task: Task,
    member_logits: Tensor,
    coefficients: Coefficients = None,
    *,
    method: Pooling = "mean",
) -> Tensor:
    """Combine outputs ``(M, N, K)`` into outputs ``(N, K)`` by the named method."""
    check_pooling(task, method)
    values = _values(coefficients, len(member_logits))
    weighted = [index for index, value in enumerate(values) if value > 0]
    if len(weighted) == 1 and method != "vote":
        return member_logits[weighted[0]]
    match method:
        case "mean":
            return task.mixture(member_logits, values)
        case "geometric":
            return mean_logits(member_logits, values)
        case "vote":
            return task.outputs_of(majority_vote(task.choices(member_logits), values))
        case _:
            assert_never(method)


def check_pooling(task: Task, method: Pooling) -> None:
    """Refuse what numbers have not.

    Raises:
        UsageError: a vote of them, or a mean of their logarithms.
    """
    if method != "mean" and not task.has_choices:
        raise UsageError(
            f"Expected pooling mean for the task {task.name}, found {method}; leave it out."
        )


def mean_logits(member_logits: Tensor, coefficients: Coefficients = None) -> Tensor:
    """The weighted mean of logits: of the probabilities the geometric mean, renormalised.

    Probabilities do not see a constant added to a row, so averaging logits and averaging log
    probabilities are the same thing. It is sharper than the arithmetic mean, and one member that
    is sure can veto a class.
    """
    values = _values(coefficients, len(member_logits))
    total = torch.zeros_like(member_logits[0], dtype=torch.float64)
    for coefficient, logits in zip(values, member_logits, strict=True):
        if coefficient > 0:
            total.add_(logits.double(), alpha=coefficient)
    return total


def mean_probabilities(member_probabilities: Tensor, coefficients: Coefficients = None) -> Tensor:
    """The weighted arithmetic mean of probabilities ``(M, N, C)`` themselves, in float64."""
    values = _values(coefficients, len(member_probabilities))
    total = torch.zeros_like(member_probabilities[0], dtype=torch.float64)
    for coefficient, probabilities in zip(values, member_probabilities, strict=True):
        total.add_(probabilities.double(), alpha=coefficient)
    return total.to(member_probabilities.dtype)


def majority_vote(member_logits: Tensor, coefficients: Coefficients = None) -> Tensor:
    """Logarithms of the share of the (weighted) votes that each of ``(M, ..., D)`` choices gets.

    The class with most votes wins. Ties go to the class with the larger mean probability, then to
    the lower index; 0.002 of a tied row's votes move to its winner, so that the largest value of a
    row always names the winner. No vote at all counts as a share of 1e-38.
    """
    values = _values(coefficients, len(member_logits))
    shares = torch.zeros_like(member_logits[0], dtype=torch.float64)
    for coefficient, logits in zip(values, member_logits, strict=True):
        shares.add_(categorical.votes(logits).double(), alpha=coefficient)
    tied = shares > shares.amax(dim=-1, keepdim=True) - TIE
    means = mean_probabilities(categorical.probabilities(member_logits.double()), values)
    won = categorical.votes(means.masked_fill(~tied, -1.0)).double()
    is_tie = tied.sum(dim=-1, keepdim=True) > 1
    settled = (1 - 2 * TIE) * shares + 2 * TIE * won
    return categorical.log_of(torch.where(is_tie, settled, shares).float())


def fit_coefficients(member_logits: Tensor, labels: Tensor, *, prior: float = 0.0) -> Tensor:
    """Coefficients ``(M,)`` on the simplex with the least NLL of the mean of probabilities.

    The problem is convex; expectation maximisation walks down it from equal coefficients, which
    never leaves the simplex and never rises. It stops when the NLL is within 1e-6 of the
    optimum, which the gradient proves: the distance is at most ``max_m g_m - 1`` with ``g_m`` the
    mean over images of ``p_m / p``.

    Args:
        member_logits: ``(M, N, C)``, rows of any task.
        labels: ``(N,)``, the true answers.
        prior: images' worth of belief in equal coefficients; more of it on fewer images.
    """
    members = len(member_logits)
    chosen = likelihood_ratios(member_logits, labels)
    coefficients = torch.full((members,), 1.0 / members, dtype=torch.float64)
    images = chosen.shape[1]
    for _ in range(MAX_ROUNDS):
        gradient = (chosen / (coefficients @ chosen)).mean(dim=1)
        updated = coefficients * gradient
        if prior > 0:
            updated = (images * updated + prior / members) / (images + prior)
        change = float((updated - coefficients).abs().max())
        coefficients = updated / updated.sum()
        if (prior == 0 and float(gradient.max()) - 1 <= TOLERANCE) or change <= TOLERANCE**2:
            break
    return coefficients


def likelihood_ratios(member_logits: Tensor, labels: Tensor) -> Tensor:
    """Each member's ``p(label)`` over that of the best one, image by image, ``(M, N)`` float64.

    Mixtures of members differ in these ratios alone, however small the probabilities are.
    """
    logs = -categorical.losses(member_logits, labels)
    ratios = (logs - logs.amax(dim=0)).exp()
    return ratios.clamp_min(torch.finfo(torch.float64).tiny)


def _values(coefficients: Coefficients, members: int) -> list[float]:
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist()
    return normalised_coefficients(coefficients, members)
