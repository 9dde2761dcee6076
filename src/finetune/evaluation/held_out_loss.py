"""How wrong held-out answers are, by the measure that a choice shall lower."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from finetune.evaluation.metrics import log_probabilities_of
from finetune.evaluation.scores import brier_score, losses_of
from finetune.spec.choices import Metric


def held_out_loss(logits: Tensor, labels: Tensor, metric: Metric) -> float:
    """NLL (nats), ``1 - accuracy`` or the Brier score (0 to 2) of ``(N, C)``; lower is better.

    Logits, log probabilities among them, have a likelihood however small the probability is.
    """
    return float(held_out_losses(logits.unsqueeze(0), labels, metric)[0])


def held_out_losses(candidates: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """The losses ``(K,)`` of K candidates' logits ``(K, N, C)`` in float64."""
    truth = labels.cpu().numpy()
    match metric:
        case "nll":
            losses = losses_of(truth, log_probabilities_of(candidates)).mean(axis=-1)
        case "accuracy":
            losses = np.mean(candidates.cpu().double().numpy().argmax(axis=-1) != truth, axis=-1)
        case "brier":
            losses = brier_score(truth, log_probabilities_of(candidates))
        case _:
            assert_never(metric)
    return torch.from_numpy(losses)
