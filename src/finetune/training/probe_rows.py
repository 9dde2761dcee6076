"""Features as every final layer is fitted to them: float64, standardised, in their principal axes.

Each feature is divided by its spread mixed in equal parts with the mean spread of all features
(root of the mean square). By its own alone, a feature that hardly varies in training gets a weight
of tens of thousands, and one image in which it does vary an answer that is absurd and sure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.errors import TrainingError

# A fit that takes longer says where it is.
QUIET_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ProbeRows:
    """N images' features of width D, in ``r <= min(N, D)`` axes; all float64 on the CPU.

    Attributes:
        rows: ``(N, r)``, by rising variance.
        weights: ``(N,)``, with a mean of 1.
        groups: ``(N,)`` integers.
        mean, spread: ``(D,)``, what was subtracted from each feature, then divided by.
        axes: ``(D, r)``.
    """

    rows: Tensor
    weights: Tensor
    groups: Tensor
    mean: Tensor
    spread: Tensor
    axes: Tensor

    @classmethod
    def of(
        cls,
        features: Tensor,
        sample_weights: Tensor | None,
        groups: Tensor | None,
        spreads: Tensor | None = None,
    ) -> ProbeRows:
        """Prepare raw features ``(N, D)``; None: all count alike, are alone, mixed spreads.

        Raises:
            TrainingError: features that are not finite.
        """
        raw = features.detach().to("cpu", torch.float64)
        if not bool(raw.isfinite().all()):
            raise TrainingError(
                "Expected finite features, found NaN or infinity; the backbone's weights or its "
                "precision are at fault: try precision 32-true or other pretrained weights."
            )
        mean, spread = raw.mean(dim=0), mixed_spreads(raw) if spreads is None else spreads
        rows, axes = principal_axes((raw - mean) / spread)
        own = torch.arange(len(raw)) if groups is None else groups
        return cls(rows, _mean_one(sample_weights, len(raw)), own, mean, spread, axes)

    def for_raw(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """``(C, D)`` and ``(C,)`` for raw features, of ``(C, r)`` and ``(C,)`` for these rows."""
        weight = weight @ self.axes.T / self.spread
        return weight, bias - weight @ self.mean


def mixed_spreads(rows: Tensor) -> Tensor:
    """Standard deviations ``(D,)``, each mixed in equal parts with their mean; 1 if all are 0."""
    spread = rows.std(dim=0, correction=0)
    common = spread.mean()
    if not common > 0:
        return torch.ones_like(spread)
    return ((spread.square() + common.square()) / 2).sqrt()


def patient(say: Callable[[str], None] | None) -> Callable[[str], None]:
    """Passes lines on once the fit has taken a few seconds."""
    started = time.monotonic()

    def tell(line: str) -> None:
        seconds = time.monotonic() - started
        if say is not None and seconds > QUIET_SECONDS:
            say(f"final layer: {line} ({seconds:.0f} s)")

    return tell


def _mean_one(sample_weights: Tensor | None, count: int) -> Tensor:
    """Weights ``(count,)`` in float64 with a mean of 1; None: all alike."""
    if sample_weights is None:
        return torch.ones(count, dtype=torch.float64)
    weights = sample_weights.detach().to("cpu", torch.float64)
    if weights.shape != (count,) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise ValueError("Expected one weight >= 0 a sample, with a positive sum.")
    return weights / weights.mean()


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(N, r)`` in their principal axes, and the axes ``(D, r)``; ``r <= min(N, D)``.

    The penalty does not see a rotation, and the optimum has no part outside the span of the rows:
    the problem is the same, and smaller where there are fewer images than features.
    """
    count, width = rows.shape
    if count < width:
        values, left = torch.linalg.eigh(rows @ rows.T)
        keep = values > 1e-11 * values[-1]
        roots = values[keep].sqrt()
        return left[:, keep] * roots, rows.T @ (left[:, keep] / roots)
    values, axes = torch.linalg.eigh(rows.T @ rows)
    axes = axes[:, values > 1e-11 * values[-1]]
    return rows @ axes, axes
