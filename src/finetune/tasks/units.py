"""Between what a network says and the user's unit: standardised numbers and their scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.errors import TrainingError

FEWEST = 5  # images; of fewer neither a spread nor a penalty can be told
FINEST = 1e-5  # of the largest number; what is finer than it is lost in single precision


class AsTheyAre(nn.Module):
    """No unit: outputs are logits. It has no tensors."""

    def learn(self, targets: Tensor) -> None:
        """Nothing."""

    def forward(self, outputs: Tensor) -> Tensor:
        """Outputs as they are."""
        return outputs

    def standardised(self, values: Tensor) -> Tensor:
        """Values as they are."""
        return values


class Unit(AsTheyAre):
    """The user's unit, by the training images' mean and spread; kept with the weights.

    Args:
        outputs: K, how many columns of numbers.

    Attributes:
        mean, spread: ``(K,)``, of the training targets; the spread is their standard deviation.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("spread", torch.ones(outputs))

    def learn(self, targets: Tensor) -> None:
        """Take mean and spread from the training images' targets ``(N, K)``.

        Raises:
            TrainingError: too few images, one number alone, or numbers too close together.
        """
        values = targets.double()
        if len(values) < FEWEST:
            raise TrainingError(
                f"Expected at least {FEWEST} training images to learn numbers from, found "
                f"{len(values)}; add images, or lower the shares that are held out."
            )
        spread, largest = values.std(dim=0, correction=0), values.abs().amax(dim=0)
        if bool((values == values[0]).all(dim=0).any()):
            raise TrainingError(
                f"Expected different numbers to learn from, found {float(values[0, 0]):g} for all "
                f"{len(values)} training images, in single precision; check the column."
            )
        if bool((spread < FINEST * largest).any()):
            raise TrainingError(
                "Expected numbers that single precision can tell apart, found a spread of "
                f"{float(spread.amin()):g} about {float(values.mean()):g}; take a common amount "
                "off the column."
            )
        self.mean.copy_(values.mean(dim=0))
        self.spread.copy_(spread)

    def forward(self, outputs: Tensor) -> Tensor:
        """In the user's unit, ``(..., K)`` of standardised ones, in single precision or wider."""
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        return wide * self.spread + self.mean

    def standardised(self, values: Tensor) -> Tensor:
        """The inverse, of outputs or targets."""
        return (values - self.mean.to(values)) / self.spread.to(values)
