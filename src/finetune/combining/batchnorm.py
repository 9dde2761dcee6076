"""Batch-norm statistics of averaged weights, estimated afresh on training images.

Averaged running statistics are only a guess: the averaged weights give other activations. For
networks that were tuned with batch statistics a pass over training images can help; networks that
were tuned with batch norm in ``eval`` must keep their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import UsageError
from finetune.runtime import device_of


def reestimate_batchnorm(network: nn.Module, batches: Iterable[object]) -> int:
    """Replace all running statistics by those of the given images; returns their number.

    Every image counts the same whatever its batch: a layer's mean and variance are those of all
    values that entered it, with the spread between batches (torch's ``update_bn`` weighs unequal
    batches equally and fails on a last batch of one). Batch norm alone is put into ``train``, so
    dropout and stochastic depth stay off; every mode, momentum and flag is restored, also after an
    error, and then the old statistics stay.

    Args:
        network: anything that maps images to anything; a classifier that normalises, too.
        batches: images ``(B, C, H, W)``, or tuples, lists or dicts (``images``) that hold them
            first.

    Raises:
        UsageError: no images.
    """
    layers = _tracking(network)
    if not layers:
        return 0
    pooled = {layer: _Pooled(layer) for layer in layers}
    device = device_of(network)
    count = 0
    with _watched(network, pooled), torch.no_grad():
        for batch in batches:
            images = _images_of(batch).to(device)
            network(images)
            count += len(images)
    if count == 0:
        raise UsageError(
            "Expected training images to estimate batch-norm statistics on, found none; "
            "give a data set with a training split."
        )
    for layer, statistics in pooled.items():
        statistics.write(layer)
    return count


class _Pooled:
    """Mean and variance of everything that entered one layer, added up in float64 on the CPU."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.count = 0
        self.batches = 0
        tracked = layer.num_batches_tracked
        self.batches_before = 0 if tracked is None else int(tracked)
        self.mean = torch.zeros(layer.num_features, dtype=torch.float64)
        self.deviations = torch.zeros(layer.num_features, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Chan et al.'s update for one batch ``(B, C, ...)``."""
        flat = values.detach().transpose(0, 1).flatten(1)
        # A device sums one batch in float32, for it may have nothing wider.
        flat = flat.double() if flat.is_cpu else flat.float()
        count = flat.shape[1]
        centre = flat.mean(dim=1)
        deviations = (flat - centre.unsqueeze(1)).square().sum(dim=1)
        mean = centre.cpu().double()
        difference = mean - self.mean
        total = self.count + count
        self.deviations += deviations.cpu().double()
        self.deviations += difference.square() * self.count * count / total
        self.mean += difference * count / total
        self.count = total
        self.batches += 1

    def write(self, layer: _BatchNorm) -> None:
        """Into the layer's buffers; the variance is the unbiased one, as batch norm keeps it."""
        if self.count < 2:
            return  # never reached by an image, or by one value: nothing to estimate
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None
        assert variance is not None
        mean.copy_(self.mean.to(mean.dtype))
        variance.copy_((self.deviations / (self.count - 1)).to(variance.dtype))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(self.batches)


def _tracking(network: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@contextmanager
def _watched(network: nn.Module, pooled: dict[_BatchNorm, _Pooled]) -> Iterator[None]:
    """Everything in ``eval`` but batch norm, which records what enters and keeps its buffers."""
    modes = {module: module.training for module in network.modules()}
    momenta = {layer: layer.momentum for layer in pooled}
    hooks = []
    try:
        for module in modes:
            module.training = False
        for layer, statistics in pooled.items():
            layer.momentum = 0.0  # normalise by the batch, leave the running statistics alone
            hooks.append(layer.register_forward_pre_hook(_recorder(statistics)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(pooled[layer].batches_before)
        for module, mode in modes.items():
            module.training = mode


def _recorder(statistics: _Pooled) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0]
        statistics.add(values)
        # One value a channel has no variance: it is normalised by the running statistics.
        layer.training = values.numel() > values.shape[1]

    return record


def _images_of(batch: object) -> Tensor:
    if isinstance(batch, dict):
        batch = batch["images"]
    if isinstance(batch, list | tuple):
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise UsageError(f"Expected batches of image tensors, found {type(batch).__name__}.")
    return batch
