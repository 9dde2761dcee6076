"""How wrong held-out answers are, by the measure that a choice shall lower."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

from finetune.spec.choices import Metric
from finetune.tasks import categorical
from finetune.tasks.class_scores import brier_score

Measure = Metric | Literal["mae"]  # the last of rows of one number each, and of nothing else


def held_out_loss(logits: Tensor, labels: Tensor, metric: Measure) -> float:
    """NLL (nats), ``1 - accuracy`` or the Brier score (0 to 2) of ``(N, C)``; lower is better.

    Logits, log probabilities among them, have a likelihood however small the probability is. Of
    numbers ``(N, 1)`` and the true ones ``(N,)`` the mean absolute error.
    """
    return float(held_out_losses(logits.unsqueeze(0), labels, metric)[0])


def held_out_losses(candidates: Tensor, labels: Tensor, metric: Measure) -> Tensor:
    """The losses ``(K,)`` of K candidates' logits ``(K, N, C)`` in float64."""
    logits, truth = candidates.detach().cpu().double(), labels.cpu()
    match metric:
        case "nll":
            return categorical.losses(logits, truth).mean(dim=-1)
        case "accuracy":
            return (categorical.likeliest(logits) != truth).double().mean(dim=-1)
        case "brier":
            logs = categorical.log_probabilities(logits).numpy()
            return torch.from_numpy(brier_score(truth.numpy(), logs))
        case "mae":
            return (logits[..., 0] - truth.double()).abs().mean(dim=-1)
        case _:
            assert_never(metric)
