"""Answers as choices: logits over the alternatives of one question, in the last dimension.

Whatever a task predicts from a list of names comes down to such rows: one class an image is one
question with C alternatives. Nothing else in the package turns logits into probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def probabilities(logits: Tensor) -> Tensor:
    """Of each alternative, ``(..., D)``, in the precision of the logits."""
    return logits.softmax(dim=-1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Their logarithms in nats, ``(..., D)``: logits with the same answer, on one scale."""
    return logits.log_softmax(dim=-1)


def log_of(probabilities: Tensor) -> Tensor:
    """Finite log probabilities in float64: 0 counts as the type's smallest positive number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).double().log()


def likeliest(values: Tensor) -> Tensor:
    """The alternative with the largest logit or probability, ``(...)``; of equals the first."""
    return values.argmax(dim=-1)


def votes(values: Tensor) -> Tensor:
    """One for the likeliest alternative and zero for the others, ``(..., D)`` int64."""
    return one_hot(likeliest(values), values.shape[-1])


def losses(logits: Tensor, answers: Tensor) -> Tensor:
    """``-log p(answer)`` in nats, float64: logits ``(..., R, D)``, answers ``(R,)``."""
    rows = torch.arange(len(answers), device=logits.device)
    return -log_probabilities(logits.double())[..., rows, answers]


def log_mean(member_logits: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Logarithms of the weighted mean of probabilities ``(M, ..., D)``, in float64.

    Its negative log likelihood is at most the weighted mean of the members' (Jensen).
    """
    terms = [
        log_probabilities(logits.double()) + math.log(value)
        for value, logits in zip(coefficients, member_logits, strict=True)
        if value > 0
    ]
    return torch.stack(terms).logsumexp(dim=0)
