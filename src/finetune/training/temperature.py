"""One factor on the logits, so that a classifier says how sure it is: the one fit of temperatures.

Sources: Guo et al., On calibration of modern neural networks, 2017; Platt, Probabilistic outputs
for support vector machines, 1999 (labels that are not quite sure); the prior is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from finetune.tasks import categorical
from finetune.tasks.task import Task

# Of an epoch's or a phase's answers: label smoothing and overconfidence stay well within.
USUAL_BOUNDS = (0.1, 10.0)


def best_temperature(
    logits: Tensor,
    labels: Tensor,
    *,
    bounds: tuple[float, float] = USUAL_BOUNDS,
    prior: float = math.inf,
    unsure: bool = True,
) -> float:
    """The temperature T within the bounds that makes the labels likeliest under ``logits / T``.

    The NLL is convex in ``b = 1 / T``: the root of its derivative, ``mean(sum_c p_c z_c - z_y)``,
    is found by bisection of log b in float64, so it cannot diverge.

    Args:
        logits: ``(N, C)``, or log probabilities: rows of any task.
        labels: ``(N,)`` in ``[0, C)``.
        bounds: the least and the largest temperature; one of them where nothing within fits best.
        prior: standard deviation of log T, normal about 0 before anything is seen: a few dozen
            images that are all answered right then do not call for certainty, and thousands decide
            alone. Infinite for none.
        unsure: labels count as Platt's, ``(N + 1) / (N + 2)``, to the same end.
    """
    rows = logits.detach().cpu().double()
    rows = rows - rows.amax(dim=-1, keepdim=True)
    labels, doubt = labels.cpu(), 1 / (len(rows) + 2) if unsure else 0.0
    target = (1 - doubt) * rows.gather(1, labels[:, None])[:, 0] + doubt * rows.mean(dim=1)
    weight = len(rows) * prior**2

    def slope(log_inverse: float) -> float:
        """That of the loss an image, over the inverse temperature."""
        inverse = math.exp(log_inverse)
        expected = (categorical.probabilities(rows * inverse) * rows).sum(dim=1)
        return float((expected - target).mean()) + log_inverse / (weight * inverse)

    low, high = (math.log(1 / bound) for bound in reversed(bounds))
    if math.isfinite(prior):
        low, high = _around_the_best(rows, target, weight, low, high)
    if slope(0.0) == 0.0:
        return 1.0  # rows of equal logits: every temperature gives the same answers
    if slope(high) <= 0:
        return math.exp(-high)
    if slope(low) >= 0:
        return math.exp(-low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _around_the_best(
    rows: Tensor, target: Tensor, weight: float, low: float, high: float
) -> tuple[float, float]:
    """The neighbours of the best of a grid: with a prior the loss may have more than one valley."""
    grid = torch.linspace(low, high, 57, dtype=torch.float64).tolist()

    def loss(log_inverse: float) -> float:
        inverse = math.exp(log_inverse)
        nll = ((inverse * rows).logsumexp(dim=1) - inverse * target).mean()
        return float(nll) + log_inverse**2 / (2 * weight)

    best = min(range(len(grid)), key=lambda index: loss(grid[index]))
    return grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]


def rescaled_nll(logits: Tensor, labels: Tensor) -> float:
    """NLL in nats once the confidence is put right: of ``logits (N, C) / best_temperature``.

    What label smoothing or overconfidence add to the NLL is not in it, so it tells which of two
    epochs knows more.
    """
    scaled = logits.detach().cpu().double() / best_temperature(logits, labels)
    return float(categorical.losses(scaled, labels.cpu()).mean())


def rescaled(
    task: Task, state: Mapping[str, Tensor], logits: Tensor, labels: Tensor, head: Iterable[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Undo what label smoothing does to the confidence: one factor on what makes the logits.

    Args:
        task: of the classifier.
        state: its weights.
        logits, labels: its answers to held-out images, ``(N, C)`` and ``(N,)``.
        head: ``output_tensors`` of the network; none where nothing can be divided.

    Returns:
        Weights and answers that agree.
    """
    names = {f"network.{name}" for name in head}
    if not names:
        return dict(state), logits
    temperature = best_temperature(*task.rows(logits, labels))
    scaled = {
        name: value / temperature if name in names else value for name, value in state.items()
    }
    return scaled, logits / temperature
