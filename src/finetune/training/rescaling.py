"""One factor on the logits, so that a classifier trained on smoothed labels says what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def best_temperature(
    logits: Tensor, labels: Tensor, *, bounds: tuple[float, float] = (0.1, 10.0)
) -> float:
    """The temperature with the least NLL of ``logits (N, C) / temperature``, found by bisection.

    The problem is convex in the inverse temperature (Guo et al. 2017). Labels count as Platt's
    (1999): ``(N + 1) / (N + 2)``, so that pictures that are all answered right do not push the
    confidence without end.
    """
    logits = logits.detach().cpu().double()
    missing = 1 / (len(logits) + 2)
    picked = logits.gather(1, labels.cpu()[:, None])[:, 0]
    target = (1 - missing) * picked + missing * logits.mean(dim=1)

    def slope(log_inverse: float) -> float:
        inverse = torch.tensor(log_inverse, dtype=torch.float64).exp()
        expected = ((logits * inverse).softmax(dim=1) * logits).sum(dim=1)
        return float((expected - target).mean())

    low, high = (float(torch.tensor(1 / bound).log()) for bound in reversed(bounds))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(torch.tensor(-(low + high) / 2).exp())


def rescaled_nll(logits: Tensor, labels: Tensor) -> float:
    """NLL in nats once the confidence is put right: of ``logits (N, C) / best_temperature``.

    What label smoothing or overconfidence add to the NLL is not in it, so it tells which of two
    epochs knows more.
    """
    scaled = logits.detach().cpu().double() / best_temperature(logits, labels)
    return float(torch.nn.functional.cross_entropy(scaled, labels.cpu()))


def rescaled(
    state: Mapping[str, Tensor], logits: Tensor, labels: Tensor, head: Iterable[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Undo what label smoothing does to the confidence: one factor on the final layer.

    Args:
        state: a classifier's weights.
        logits, labels: its answers to held-out images, ``(N, C)`` and ``(N,)``.
        head: names of the final layer's parameters in the network.

    Returns:
        Weights and answers that agree.
    """
    temperature = best_temperature(logits, labels)
    names = {f"network.{name}" for name in head}
    scaled = {
        name: value / temperature if name in names else value for name, value in state.items()
    }
    return scaled, logits / temperature
