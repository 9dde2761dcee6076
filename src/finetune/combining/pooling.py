"""The members' probabilities into one answer: ``(M, N, C)`` to ``(N, C)``.

M members, N images, C classes; every function takes probabilities whose rows sum to 1 and returns
such rows. Coefficients are normalised; a member with all of the weight is returned bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from finetune.combining.averaging import normalised_coefficients
from finetune.combining.calibration import log_of

Pooling = Literal["mean", "geometric", "vote"]
Coefficients = Sequence[float] | Tensor | None

# Shares of the votes that are closer than this are a tie.
TIE = 1e-3


def pool(
    member_probabilities: Tensor, coefficients: Coefficients = None, *, method: Pooling = "mean"
) -> Tensor:
    """Combine ``(M, N, C)`` into ``(N, C)`` by the named method."""
    match method:
        case "mean":
            return mean_probabilities(member_probabilities, coefficients)
        case "geometric":
            return geometric_mean(member_probabilities, coefficients)
        case "vote":
            return majority_vote(member_probabilities, coefficients)
        case _:
            assert_never(method)


def mean_probabilities(member_probabilities: Tensor, coefficients: Coefficients = None) -> Tensor:
    """The weighted arithmetic mean, accumulated in float64.

    Its negative log likelihood is at most the weighted mean of the members' (Jensen).
    """
    values = _values(coefficients, len(member_probabilities))
    if (alone := _only_member(values)) is not None:
        return member_probabilities[alone]
    total = torch.zeros_like(member_probabilities[0], dtype=torch.float64)
    for coefficient, probabilities in zip(values, member_probabilities, strict=True):
        total.add_(probabilities.double(), alpha=coefficient)
    return total.to(member_probabilities.dtype)


def geometric_mean(member_probabilities: Tensor, coefficients: Coefficients = None) -> Tensor:
    """The weighted geometric mean, renormalised: the softmax of the members' mean logits.

    A softmax does not see a constant added to a row, so averaging logits and averaging log
    probabilities are the same thing (:func:`mean_logits` starts from logits). It is sharper than
    the arithmetic mean, and one member that is sure can veto a class.
    """
    values = _values(coefficients, len(member_probabilities))
    if (alone := _only_member(values)) is not None:
        return member_probabilities[alone]
    return mean_logits(log_of(member_probabilities), values).to(member_probabilities.dtype)


def mean_logits(member_logits: Tensor, coefficients: Coefficients = None) -> Tensor:
    """Probabilities ``(N, C)``: the softmax of the weighted mean of logits ``(M, N, C)``."""
    values = _values(coefficients, len(member_logits))
    total = torch.zeros_like(member_logits[0], dtype=torch.float64)
    for coefficient, logits in zip(values, member_logits, strict=True):
        if coefficient > 0:
            total.add_(logits.double(), alpha=coefficient)
    return total.softmax(dim=-1).to(member_logits.dtype)


def majority_vote(member_probabilities: Tensor, coefficients: Coefficients = None) -> Tensor:
    """The share of the (weighted) votes that each class gets.

    The class with most votes wins. Ties go to the class with the larger mean probability, then to
    the lower index; 0.002 of a tied row's votes move to its winner, so that the largest value of a
    row always names the winner.
    """
    values = _values(coefficients, len(member_probabilities))
    number_of_classes = member_probabilities.shape[-1]
    shares = torch.zeros_like(member_probabilities[0], dtype=torch.float64)
    for coefficient, probabilities in zip(values, member_probabilities, strict=True):
        votes = torch.nn.functional.one_hot(probabilities.argmax(dim=-1), number_of_classes)
        shares.add_(votes.double(), alpha=coefficient)
    tied = shares > shares.amax(dim=-1, keepdim=True) - TIE
    means = mean_probabilities(member_probabilities.double(), values)
    winner = means.masked_fill(~tied, -1.0).argmax(dim=-1)
    won = torch.nn.functional.one_hot(winner, number_of_classes).double()
    is_tie = tied.sum(dim=-1, keepdim=True) > 1
    settled = (1 - 2 * TIE) * shares + 2 * TIE * won
    return torch.where(is_tie, settled, shares).to(member_probabilities.dtype)


def fit_coefficients(
    member_probabilities: Tensor,
    labels: Tensor,
    *,
    prior: float = 0.0,
    tolerance: float = 1e-6,
    max_rounds: int = 5000,
) -> Tensor:
    """Coefficients ``(M,)`` on the simplex with the least NLL of :func:`mean_probabilities`.

    The problem is convex; expectation maximisation walks down it from equal coefficients, which
    never leaves the simplex and never rises. It stops when the NLL is within ``tolerance`` of the
    optimum, which the gradient proves: the distance is at most ``max_m g_m - 1`` with ``g_m`` the
    mean over images of ``p_m / p``.

    Args:
        member_probabilities: ``(M, N, C)``.
        labels: ``(N,)``, the true classes.
        prior: images' worth of belief in equal coefficients; more of it on fewer images.
        tolerance: distance of the NLL to its optimum that is small enough.
        max_rounds: bound on the work.
    """
    members = len(member_probabilities)
    chosen = member_probabilities.double()[:, torch.arange(len(labels)), labels]
    chosen = chosen.clamp_min(torch.finfo(torch.float64).tiny)
    coefficients = torch.full((members,), 1.0 / members, dtype=torch.float64)
    images = chosen.shape[1]
    for _ in range(max_rounds):
        gradient = (chosen / (coefficients @ chosen)).mean(dim=1)
        updated = coefficients * gradient
        if prior > 0:
            updated = (images * updated + prior / members) / (images + prior)
        change = float((updated - coefficients).abs().max())
        coefficients = updated / updated.sum()
        if (prior == 0 and float(gradient.max()) - 1 <= tolerance) or change <= tolerance**2:
            break
    return coefficients


def _values(coefficients: Coefficients, members: int) -> list[float]:
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist()
    return normalised_coefficients(coefficients, members)


def _only_member(values: list[float]) -> int | None:
    weighted = [index for index, value in enumerate(values) if value > 0]
    return weighted[0] if len(weighted) == 1 else None
