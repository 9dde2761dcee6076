"""What batch norm believes and what is the case: stored statistics against those of a batch.

While training, batch norm divides by the batch's own statistics and remembers a running average
of them; in eval mode it uses the memory. Where the two differ, a network answers differently in the
two modes: after too few steps, on other images, and after averaging weights, whose statistics
nobody ever saw (Izmailov et al. 2018, arXiv:1803.05407, 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.networks.splitting import evaluating


@dataclass(frozen=True, slots=True)
class NormStatistics:
    """One batch norm's memory and what it meets, each ``(channels,)``.

    Attributes:
        name: path of the layer.
        stored_mean, stored_var: what eval mode uses.
        batch_mean, batch_var: of the layer's input for the given images, in eval mode.
    """

    name: str
    stored_mean: Tensor
    stored_var: Tensor
    batch_mean: Tensor
    batch_var: Tensor

    @property
    def shift(self) -> float:
        """Distance of the means in stored standard deviations, averaged over channels."""
        distance = (self.batch_mean - self.stored_mean).abs()
        return float((distance / (self.stored_var + 1e-5).sqrt()).mean())

    @property
    def spread(self) -> float:
        """Standard deviation met over the one stored, averaged over channels; 1 is right."""
        return float(((self.batch_var + 1e-5) / (self.stored_var + 1e-5)).sqrt().mean())


def norm_statistics(network: nn.Module, images: Tensor) -> list[NormStatistics]:
    """Compare every batch norm's memory with what it meets on ``images`` ``(B, C, H, W)``.

    Args:
        network: takes the images as they are; run in eval mode, left as it was.
        images: more than one; the more, the surer the comparison.

    Returns:
        One entry a layer with stored statistics, in the order in which they run.
    """
    found: list[NormStatistics] = []

    def compare(name: str) -> Callable[..., None]:
        def look(module: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1)
            variance, mean = torch.var_mean(values, dim=1, correction=0)
            assert module.running_mean is not None
            assert module.running_var is not None
            stored = module.running_mean.clone(), module.running_var.clone()
            found.append(NormStatistics(name, *stored, mean, variance))

        return look

    handles = [
        module.register_forward_pre_hook(compare(name))
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    try:
        with evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
