"""The final layer fitted properly: multinomial logistic regression on features.

Features are standardised, the L2 penalty is chosen by cross-validation over a logarithmic grid,
and the standardisation is folded back, so that the result is a plain final layer for raw features.
As the strategy ``head`` this is the whole fit; otherwise it is where fine-tuning starts (linear
probing, then fine-tuning: Kumar et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.errors import TrainingError
from finetune.training.logistic_regression import logistic_problem, solve_logistic
from finetune.training.penalty_search import L2_GRID, UNJUDGED_L2, PenaltySearch
from finetune.training.probe_rows import ProbeRows, patient


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted final layer for raw features: ``logits = features @ weight.T + bias``.

    Attributes:
        weight, bias: float64, ``(C, D)`` and ``(C,)``.
        l2: the penalty on the sum of the (weighted) losses, chosen or given. Chosen is the
            strongest one within one standard error of the best (Breiman et al. 1984): on little
            data the curve is flat, and the stronger penalty is the better calibrated.
        held_out_nll: mean negative log-likelihood over the held-out folds for each penalty tried;
            empty where the penalty was given.
        l2_of_labels: of several labels an image, one each, where that is better; else None.
        held_out_logits: ``(N, C)`` in float64 where they were asked for: of each row by a fit with
            this penalty that saw nothing of its group; NaN where there is none.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    held_out_nll: dict[float, float] = field(default_factory=dict)
    l2_of_labels: tuple[float, ...] | None = None
    held_out_logits: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` in float64 for raw features ``(N, D)``."""
        return features.to(self.weight) @ self.weight.T + self.bias


def fit_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    sample_weights: Tensor | None = None,
    groups: Tensor | None = None,
    l2: float | Sequence[float] | None = None,
    seed: int = 0,
    held_out: bool = False,
    spreads: Tensor | None = None,
    say: Callable[[str], None] | None = None,
) -> Probe:
    """Fit the final layer on ``features (N, D)`` and ``labels (N,)``.

    How far one feature can move an answer is bounded. With the mean spread of the features m, a
    feature that moves by ``t * m`` changes no logit by more than ``2 * t * sqrt(N * log(C) / l2)``,
    nor that of class c by more than ``2 * t * N_c * r / l2``, where N_c is the (weighted) number of
    images of class c and ``r * m`` the range of the feature in training: what never varied there
    counts for nothing, however far it moves later.

    Args:
        features: any floating dtype; the optimum is found in float64.
        labels: int64 in ``[0, num_classes)``.
        num_classes: C; a class without an image gets a small constant probability.
        sample_weights: ``(N,)``, >= 0; only their ratios matter. Class weights go in here.
        groups: ``(N,)`` integers; rows of one group (the views of one image, near-duplicates)
            are never split between folds. Default: every row its own.
        l2: one penalty, or several to choose from by 5-fold cross-validation (see
            :mod:`finetune.training.penalty_search`). Default: the decades of its ``L2_GRID``, then
            the half decades around the best; ``UNJUDGED_L2`` where nothing can be held out, for no
            class has rows of two groups.
        seed: of the assignment to folds, the only random thing here.
        held_out: keep the held-out answers too, where penalties are chosen from and every class has
            an image.
        spreads: ``(D,)``, above 0, what each feature is divided by, and so how much the penalty
            holds it down; :func:`mixed_spreads` for None.
        say: gets a line for each penalty once the fit has taken a few seconds.

    Raises:
        TrainingError: features that are not finite, or fewer than two classes with images.
    """
    labels = labels.detach().cpu()
    _check(features, labels, num_classes)
    tell = patient(say)
    prepared = ProbeRows.of(features, sample_weights, groups, spreads)
    rows, weights = prepared.rows, prepared.weights
    present = torch.unique(labels)
    dense = torch.searchsorted(present, labels)
    held_out_nll: dict[float, float] = {}
    answers: Tensor | None = None
    if isinstance(l2, int | float):
        chosen = float(l2)
    else:
        search = PenaltySearch(
            rows, dense, weights, prepared.groups, len(present), seed=seed, tell=tell
        )
        if search.problems:
            search.search(L2_GRID if l2 is None else l2, refine=l2 is None)
            held_out_nll, chosen = search.scores, search.strongest_within_one_standard_error()
        else:
            tell("no class has two groups of images, so that one could be held out")
            chosen = UNJUDGED_L2 if l2 is None else max(l2)
        answers = search.held_out_logits(chosen) if held_out else None
        tell(f"penalty {chosen:.3g} is taken; fitting {len(rows)} rows, {len(present)} classes")
    coefficients = solve_logistic(logistic_problem(rows, dense, weights, len(present)), chosen)
    weight, bias = prepared.for_raw(coefficients[:, :-1], coefficients[:, -1])
    if len(present) < num_classes:
        weight, bias = _with_absent_classes(weight, bias, features, present, num_classes)
    return Probe(weight, bias, chosen, held_out_nll, held_out_logits=answers)


def out_of_fold(
    fit: Callable[..., Probe],
    features: Tensor,
    targets: Tensor,
    outputs: int,
    *,
    fold_of: Tensor,
    l2: float,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """What each row is answered by a probe that was fitted without the row's fold.

    Args:
        fit: :func:`fit_probe`, or one like it.
        features, targets, outputs, sample_weights: as it takes them.
        fold_of: ``(N,)``; -1: never held out.
        l2: the penalty of all folds.

    Returns:
        Logits ``(N, outputs)`` in float64; NaN where a row is never held out.
    """
    answers = torch.full((len(features), outputs), math.nan, dtype=torch.float64)
    for fold in torch.unique(fold_of[fold_of >= 0]).tolist():
        out = fold_of == fold
        weights = None if sample_weights is None else sample_weights[~out]
        probe = fit(features[~out], targets[~out], outputs, sample_weights=weights, l2=l2)
        answers[out] = probe.logits(features[out])
    return answers


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"Expected features (N, D) and labels (N,), found {tuple(features.shape)} and "
            f"{tuple(labels.shape)}."
        )
    found = torch.unique(labels).tolist()
    if len(found) < 2 or found[0] < 0 or found[-1] >= num_classes:
        raise TrainingError(
            f"Expected training images of at least two of {num_classes} classes, found labels "
            f"{found[:5]}; add images or check the split."
        )


def _with_absent_classes(
    weight: Tensor, bias: Tensor, features: Tensor, present: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Adds classes without an image: about one image's worth of probability everywhere."""
    typical = float(Probe(weight, bias, 0.0).logits(features).logsumexp(dim=1).mean())
    full_weight = weight.new_zeros(num_classes, weight.shape[1])
    full_bias = bias.new_full((num_classes,), typical - math.log(len(features) + 1))
    full_weight[present], full_bias[present] = weight, bias
    return full_weight, full_bias
