"""The last step before a network: bytes become floats, where the network computes."""

from __future__ import annotations

import torch
from torch import Tensor


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
