"""How differently the members of an ensemble err: what combining them can gain.

All matrices are symmetric, ``(M, M)``, float64; labels ``(N,)``, logits ``(M, N, C)``.
Source of the pairwise measures: Kuncheva & Whitaker, Measures of diversity in classifier
ensembles, 2003.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.combining.averaging import normalised_coefficients
from finetune.combining.pooling import pool
from finetune.spec.choices import Metric, Pooling
from finetune.tasks import categorical
from finetune.tasks.held_out_loss import held_out_loss, held_out_losses
from finetune.tasks.multiclass import MULTICLASS


@dataclass(frozen=True, slots=True)
class Diversity:
    """The pairs of members, and the ensemble as a whole.

    Attributes:
        disagreement: share of the images to which two members give different labels; 0 on the
            diagonal.
        error_correlation: Pearson correlation of two members' errors; 1 on the diagonal, 0 where a
            member errs never or always.
        kappa: Cohen's kappa of two members' labels: agreement beyond chance, 1 on the diagonal.
        q_statistic: Yule's Q of two members' correctness, in [-1, 1]; 0 where it is undefined.
        divergence: symmetric Kullback-Leibler divergence, mean over images, in nats.
        oracle_accuracy: share of the images that at least one member gets right.
        ambiguity: the members' mean loss less the ensemble's: what pooling gained.
    """

    disagreement: Tensor
    error_correlation: Tensor
    kappa: Tensor
    q_statistic: Tensor
    divergence: Tensor
    oracle_accuracy: float
    ambiguity: float


def diversity(
    member_logits: Tensor,
    labels: Tensor,
    coefficients: Sequence[float] | None = None,
    *,
    pooling: Pooling = "mean",
    metric: Metric = "nll",
) -> Diversity:
    """Measure the members ``(M, N, C)`` against each other and the true labels ``(N,)``.

    Rows of any task will do.

    Coefficients, pooling and metric are those of the ``ambiguity``.
    """
    predicted = categorical.likeliest(member_logits)
    correct = predicted == labels
    return Diversity(
        disagreement=pairwise_disagreement(predicted),
        error_correlation=error_correlation(correct),
        kappa=cohen_kappa(predicted, member_logits.shape[-1]),
        q_statistic=q_statistic(correct),
        divergence=pairwise_divergence(member_logits),
        oracle_accuracy=float(correct.any(dim=0).double().mean()),
        ambiguity=ambiguity(member_logits, labels, coefficients, pooling=pooling, metric=metric),
    )


def pairwise_disagreement(predicted: Tensor) -> Tensor:
    """``P(label_i != label_j)`` for labels ``(M, N)``."""
    different = predicted.unsqueeze(0) != predicted.unsqueeze(1)
    return different.double().mean(dim=-1)


def error_correlation(correct: Tensor) -> Tensor:
    """Pearson correlation of the errors, for correctness ``(M, N)`` (bool)."""
    errors = (~correct).double()
    centred = errors - errors.mean(dim=-1, keepdim=True)
    norms = centred.norm(dim=-1)
    product = norms.unsqueeze(0) * norms.unsqueeze(1)
    correlation = torch.where(product > 0, centred @ centred.T / product.clamp_min(1e-300), 0.0)
    return correlation.fill_diagonal_(1.0)


def cohen_kappa(predicted: Tensor, number_of_classes: int) -> Tensor:
    """Agreement of labels ``(M, N)`` beyond what their frequencies give; 1 where all agree."""
    agreement = 1 - pairwise_disagreement(predicted)
    one_hot = torch.nn.functional.one_hot(predicted, number_of_classes).double()
    frequencies = one_hot.mean(dim=1)
    chance = frequencies @ frequencies.T
    return torch.where(chance < 1, (agreement - chance) / (1 - chance).clamp_min(1e-300), 1.0)


def q_statistic(correct: Tensor) -> Tensor:
    """Yule's Q for correctness ``(M, N)`` (bool): 1 if members are right on the same images."""
    right, wrong = correct.double(), (~correct).double()
    both = (right @ right.T) * (wrong @ wrong.T)
    one = (right @ wrong.T) * (wrong @ right.T)
    return torch.where(both + one > 0, (both - one) / (both + one).clamp_min(1e-300), 0.0)


def pairwise_divergence(member_logits: Tensor) -> Tensor:
    """``(KL(p_i, p_j) + KL(p_j, p_i)) / 2``, mean over images, for ``(M, N, C)``."""
    logs = categorical.log_probabilities(member_logits.double()).flatten(1)
    flat, images = logs.exp(), member_logits.shape[1]
    cross = flat @ logs.T / images
    own = cross.diagonal()
    one_way = own.unsqueeze(1) - cross
    return ((one_way + one_way.T) / 2).clamp_min(0.0)


def ambiguity(
    member_logits: Tensor,
    labels: Tensor,
    coefficients: Sequence[float] | None = None,
    *,
    pooling: Pooling = "mean",
    metric: Metric = "nll",
) -> float:
    """The members' (weighted) mean loss less the loss of their pooled answer.

    At least 0 for the NLL, in nats, of a mean or a geometric pool, and for the Brier score of a
    mean (Jensen); the accuracy may fall. Votes have an accuracy only.
    """
    members = member_logits.double()
    weights = torch.tensor(normalised_coefficients(coefficients, len(members))).double()
    alone = float(weights @ held_out_losses(members, labels, metric))
    pooled = pool(MULTICLASS, members, coefficients, method=pooling)
    gain = alone - held_out_loss(pooled, labels, metric)
    return max(gain, 0.0) if metric == "nll" else gain  # equal members gain 0, not its rounding
