"""TrivialAugment's operations for several images at once, each with a strength of its own.

What torchvision does to one ``uint8`` image, done to float batches ``(N, C, S, S)`` in
``[0, 255]``: without a look at any value, so that no device has to be waited for.

Source: Müller and Hutter, TrivialAugment, ICCV 2021; strengths are those of torchvision's
``TrivialAugmentWide``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

SHEAR = 0.99
TRANSLATION = 32  # pixels
DEGREES = 135.0
BLENDING = 0.99
FEWEST_BITS = 6  # are taken away at most

Images = Tensor
# A batch, strengths (N, 1, 1, 1) in [-1, 1], and the colour (1, C, 1, 1) of what is empty.
Operation = Callable[[Images, Tensor, Tensor], Images]


def applied(
    images: Images, operations: Sequence[int], magnitudes: Tensor, colour: Tensor
) -> Images:
    """Each image after its operation.

    Args:
        images: is changed in place; those with one operation stand side by side.
        operations: the number of each image's in :data:`OPERATIONS`; known without a look at the
            device.
        magnitudes: ``(N,)`` on the device, in ``[-1, 1]``.
        colour: ``(1, C, 1, 1)``, what is empty gets it.
    """
    strengths = magnitudes.view(-1, 1, 1, 1)
    start = 0
    while start < len(operations):
        number, end = operations[start], start + 1
        while end < len(operations) and operations[end] == number:
            end += 1
        if number:
            part = slice(start, end)
            images[part] = OPERATIONS[number](images[part], strengths[part], colour)
        start = end
    return images


def _identity(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return images


def _shear_x(images: Images, strength: Tensor, colour: Tensor) -> Images:
    shear = SHEAR * strength
    return _moved(images, colour, (1, shear, shear), (0, 1, 0))


def _shear_y(images: Images, strength: Tensor, colour: Tensor) -> Images:
    shear = SHEAR * strength
    return _moved(images, colour, (1, 0, 0), (shear, 1, shear))


def _translate_x(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return _moved(images, colour, (1, 0, _shift(images, strength)), (0, 1, 0))


def _translate_y(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return _moved(images, colour, (1, 0, 0), (0, 1, _shift(images, strength)))


def _rotate(images: Images, strength: Tensor, colour: Tensor) -> Images:
    angle = (strength * DEGREES).deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    return _moved(images, colour, (cosine, -sine, 0), (sine, cosine, 0))


def _brightness(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return (images * (1 + BLENDING * strength)).clamp(0, 255)


def _saturation(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return images if images.shape[1] == 1 else _blended(images, _grey(images), strength)


def _contrast(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return _blended(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), strength)


def _sharpness(images: Images, strength: Tensor, colour: Tensor) -> Images:
    if images.shape[-1] < 3:
        return images
    kernel = images.new_ones(1, 1, 3, 3)
    kernel[..., 1, 1] = 5
    smooth = images.clone()
    planes = images.reshape(-1, 1, *images.shape[-2:])
    smooth[..., 1:-1, 1:-1] = conv2d(planes, kernel / 13).view_as(smooth[..., 1:-1, 1:-1])
    return _blended(images, smooth, strength)


def _posterize(images: Images, strength: Tensor, colour: Tensor) -> Images:
    width = (FEWEST_BITS * strength.abs()).round().exp2()
    return (images / width).floor() * width


def _solarize(images: Images, strength: Tensor, colour: Tensor) -> Images:
    return torch.where(images >= 255 * (1 - strength.abs()), 255 - images, images)


def _autocontrast(images: Images, strength: Tensor, colour: Tensor) -> Images:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched, images)


def _equalize(images: Images, strength: Tensor, colour: Tensor) -> Images:
    equalized: Tensor = functional.equalize(images.to(torch.uint8))
    return equalized.to(images.dtype)


OPERATIONS: tuple[Operation, ...] = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _saturation,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)


def _blended(images: Images, other: Tensor, strength: Tensor) -> Images:
    return torch.lerp(other.expand_as(images), images, 1 + BLENDING * strength).clamp(0, 255)


def _grey(images: Images) -> Tensor:
    grey: Tensor = functional.rgb_to_grayscale(images)
    return grey


def _shift(images: Images, strength: Tensor) -> Tensor:
    """Whole pixels, as a share of half the side."""
    return -(TRANSLATION * strength).trunc() * (2 / images.shape[-1])


def _moved(
    images: Images,
    colour: Tensor,
    across: tuple[Tensor | int, ...],
    down: tuple[Tensor | int, ...],
) -> Images:
    """Looked up where a linear map puts each place: x, y and 1, with ``[-1, 1]`` as the image."""
    theta = images.new_zeros(len(images), 2, 3)
    for row, coefficients in enumerate((across, down)):
        for column, value in enumerate(coefficients):
            theta[:, row, column] = value.flatten() if isinstance(value, Tensor) else value
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    # What lies beyond the image counts as zero, so as the colour.
    return grid_sample(images - colour, grid, align_corners=False) + colour
