"""How wrong held-out answers are, by the measure that a choice shall lower."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

Metric = Literal["nll", "accuracy", "brier"]


def held_out_loss(probabilities: Tensor, labels: Tensor, metric: Metric) -> float:
    """NLL (nats), ``1 - accuracy`` or the Brier score (0 to 2) of ``(N, C)``; lower is better."""
    return float(held_out_losses(probabilities.unsqueeze(0).double(), labels, metric)[0])


def held_out_losses(candidates: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """The losses ``(K,)`` of K candidates' answers ``(K, N, C)`` in float64."""
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
