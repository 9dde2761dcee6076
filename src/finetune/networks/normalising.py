"""The last step before a network: bytes become floats, where the network computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def unit_floats(images: Tensor) -> Tensor:
    """``uint8`` images as float32 in ``[0, 1]``; floats, which are in it already, stay as they are.

    Batches travel as bytes, a quarter of the floats, and are converted where they are used.
    """
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """What a network takes, ``(B, C, S, S)`` in the precision of its statistics.

    Args:
        images: ``uint8``, or floats in ``[0, 1]``.
        mean, std: ``(1, C, 1, 1)``, on the same device.
    """
    return ((unit_floats(images) - mean) / std).to(mean.dtype)


def register_statistics(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """``mean`` and ``std`` as buffers ``(1, C, 1, 1)``, which move with a module, unsaved."""
    for name, values in (("mean", mean), ("std", std)):
        module.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
