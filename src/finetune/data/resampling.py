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
    """Views ``(N, C, size, size)``, floats in ``[0, 255]``.

    Args:
        images: floats ``(N, H, C, W)``: with the rows first, both products are of plain batches.
            What lies beyond ``length`` counts for nothing.
        rows, columns: of every image, in float32.
        size: side of the views.
        interpolation: always antialiased.
    """
    count, height, channels, width = images.shape
    across = weights(columns, size, width, interpolation)
    down = weights(rows, size, height, interpolation)
    narrow = torch.bmm(images.reshape(count, height * channels, width), across.transpose(1, 2))
    views = torch.bmm(down, narrow.view(count, height, channels * size))
    views.clamp_(0, 255)  # bicubic goes beyond at edges
    return views.view(count, size, channels, size).transpose(1, 2)


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
    scale = step.abs().clamp(min=1)
    # What must not be looked at is far away. Small tensors first: each step below costs time.
    places_of_pixels = torch.where(pixels < length, (pixels + 0.5) / scale, 1e6)
    shares = _filter((places_of_pixels - centres / scale).abs_(), interpolation)
    return shares.div_(shares.sum(dim=-1, keepdim=True))


def _filter(x: Tensor, interpolation: Interpolation) -> Tensor:
    """Of a distance in output pixels, which is overwritten.

    Bicubic as Pillow's and torch's antialiased one (Keys 1981, a = -0.5), which is 1.5 x^3 -
    2.5 x^2 + 1 up to 1 and -0.5 x^3 + 2.5 x^2 - 4 x + 2 up to 2: in powers of what is left to 2 and
    to 1.
    """
    if interpolation == "bilinear":
        return x.neg_().add_(1).relu_()
    to_two = x.neg_().add_(2).relu_()
    to_one = (to_two - 1).relu_()
    inner = (1 - 2 * to_one).mul_(to_one.square_())
    return (0.5 * to_two - 0.5).mul_(to_two.square_()).add_(inner)
