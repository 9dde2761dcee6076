"""Crops of a whole batch, each resized from a place of its own, as two products with matrices.

An antialiased resize is linear, and so is cutting before or after it: an output pixel is a weighted
mean of the input pixels around its centre. So a batch of views is a product along the columns and
one along the rows, with a matrix an image, on any device and without a kernel of our own. The
weights are those of ``torch.nn.functional.interpolate(antialias=True)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.spec.preprocessing import Interpolation


@dataclass(frozen=True, slots=True)
class Places:
    """Where the outputs of ``N`` images look along one side, all ``(N,)``, in input pixels.

    Attributes:
        start: where the first output begins.
        step: from one output to the next; negative where the image is mirrored.
        length: of the part that may be looked at, which begins at 0.
    """

    start: Tensor
    step: Tensor
    length: Tensor


def resampled(
    images: Tensor, rows: Places, columns: Places, size: int, interpolation: Interpolation
) -> Tensor:
    """Views ``(N, C, size, size)`` of images ``(N, C, H, W)``, floats in ``[0, 255]``.

    Args:
        images: floats; what lies beyond ``length`` counts for nothing.
        rows, columns: of every image, in float32.
        size: side of the views.
        interpolation: always antialiased.
    """
    count, channels, height, width = images.shape
    across = weights(columns, size, width, interpolation)
    down = weights(rows, size, height, interpolation)
    narrow = torch.bmm(images.reshape(count, channels * height, width), across.transpose(1, 2))
    views = down.unsqueeze(1) @ narrow.view(count, channels, height, size)
    return views.clamp_(0, 255)  # bicubic goes beyond at edges


def weights(places: Places, outputs: int, inputs: int, interpolation: Interpolation) -> Tensor:
    """Shares of the inputs in each output, float32 ``(N, outputs, inputs)``; rows add up to 1."""
    device = places.start.device
    start, step, length = (
        each.view(-1, 1, 1) for each in (places.start, places.step, places.length)
    )
    centres = start + (torch.arange(outputs, device=device).view(1, -1, 1) + 0.5) * step
    pixels = torch.arange(inputs, device=device).view(1, 1, -1)
    if interpolation == "nearest":
        firsts = (centres - step.abs() / 2).floor().clamp(min=0).minimum(length - 1)  # as torch's
        return (firsts == pixels).float()
    distance = (pixels + 0.5 - centres).abs() / step.abs().clamp(min=1)
    shares = _filter(distance, interpolation) * (pixels < length)
    return shares / shares.sum(dim=-1, keepdim=True)


def _filter(x: Tensor, interpolation: Interpolation) -> Tensor:
    """Of a distance in output pixels; bicubic as Pillow's and torch's antialiased one, a = -0.5."""
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far * (x < 2))
