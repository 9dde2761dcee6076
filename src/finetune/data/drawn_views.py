"""What is drawn for the views of an epoch, on the CPU, before any of them is made on a device.

Each draw has a seed, and all that its view needs follows from that seed alone: order, batch size,
the number of devices and where a fit was resumed change nothing. The distributions are those of
torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``TrivialAugmentWide`` and
``RandomErasing``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from finetune.data.decoding import shrunk_size
from finetune.data.transforms import (
    ERASED_SHARE,
    LEAST_AREA,
    MAX_ASPECT,
    TRIVIAL_SHARE,
    Augmentation,
)
from finetune.spec.preprocessing import Preprocessing

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

ATTEMPTS = 10  # to find a box that lies within the image, as torchvision's
OPERATIONS = 14  # of TrivialAugment
MAGNITUDES = 31
LOG_CROP_RATIO = (math.log(3 / 4), math.log(4 / 3))
LOG_ERASED_RATIO = (math.log(0.3), math.log(3.3))
ERASED_AREA = (0.02, 0.33)


@dataclass(frozen=True, slots=True)
class DrawnViews:
    """The views of ``N`` draws, all ``(N,)``.

    Attributes:
        top, left, height, width: the part of the stored image that is looked at, in pixels.
        row_start, row_step, column_start, column_step: where in that part the outputs lie; see
            :class:`finetune.data.resampling.Places`.
        operation: of TrivialAugment by its number; 0 is none.
        magnitude: of the operation: 0 to 1 by strength, with its sign.
        erased_top, erased_left, erased_height, erased_width: of the view; 0 high: nothing is.
    """

    top: Whole
    left: Whole
    height: Whole
    width: Whole
    row_start: Floats
    row_step: Floats
    column_start: Floats
    column_step: Floats
    operation: Whole
    magnitude: Floats
    erased_top: Whole
    erased_left: Whole
    erased_height: Whole
    erased_width: Whole

    def of(self, draws: Whole | slice) -> DrawnViews:
        """Those of some draws."""
        return DrawnViews(*(getattr(self, field.name)[draws] for field in fields(self)))


def evaluation_views(heights: Whole, widths: Whole, preprocessing: Preprocessing) -> DrawnViews:
    """As the evaluation transform sees images of these sizes; nothing is drawn."""
    longest = np.maximum(1, MAX_ASPECT * np.minimum(heights, widths))
    height, width = np.minimum(heights, longest), np.minimum(widths, longest)
    sizes = np.array(
        [shrunk_size((h, w), preprocessing.resize_size) for h, w in zip(height, width, strict=True)]
    )
    row_step, column_step = height / sizes[:, 0], width / sizes[:, 1]
    before = np.rint((sizes - preprocessing.image_size) / 2)  # of the resized image
    nothing = np.zeros_like(heights)
    return DrawnViews(
        np.rint((heights - height) / 2).astype(np.int64),
        np.rint((widths - width) / 2).astype(np.int64),
        height,
        width,
        row_start=before[:, 0] * row_step,
        row_step=row_step,
        column_start=before[:, 1] * column_step,
        column_step=column_step,
        operation=nothing,
        magnitude=np.zeros(len(heights)),
        erased_top=nothing,
        erased_left=nothing,
        erased_height=nothing,
        erased_width=nothing,
    )


def training_views(
    heights: Whole,
    widths: Whole,
    seeds: Whole,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> DrawnViews:
    """Random views of images of these sizes, one a seed; see :func:`training_transform`."""
    if augmentation == "none":
        return evaluation_views(heights, widths, preprocessing)
    crop, flip, trivial, erasing = np.split(
        uniforms(seeds, 4 * ATTEMPTS + 10),
        [2 * ATTEMPTS + 2, 2 * ATTEMPTS + 3, 2 * ATTEMPTS + 7],
        1,
    )
    top, left, height, width = _crops(heights, widths, crop, LEAST_AREA[augmentation])
    size = preprocessing.image_size
    mirrored = flip[:, 0] < 0.5
    step = width / size
    operation, magnitude = _operations(trivial, TRIVIAL_SHARE[augmentation])
    return DrawnViews(
        top,
        left,
        height,
        width,
        row_start=np.zeros(len(seeds)),
        row_step=height / size,
        column_start=np.where(mirrored, width, 0.0),
        column_step=np.where(mirrored, -step, step),
        operation=operation,
        magnitude=magnitude,
        **_erased(erasing, size, ERASED_SHARE[augmentation]),
    )


def uniforms(seeds: Whole, count: int) -> Floats:
    """Numbers in ``[0, 1)``, ``(N, count)``; each row depends on its seed alone.

    Source: SplitMix64, Steele et al., Fast splittable pseudorandom number generators, 2014.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = seeds.astype(np.uint64)[:, None] + steps
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)) * 2.0**-53


def _crops(
    heights: Whole, widths: Whole, drawn: Floats, least_area: float
) -> tuple[Whole, Whole, Whole, Whole]:
    """Top, left, height and width of boxes; the first of the attempts that fit."""
    area = (heights * widths)[:, None] * _between(drawn[:, :ATTEMPTS], least_area, 1.0)
    ratio = np.exp(_between(drawn[:, ATTEMPTS : 2 * ATTEMPTS], *LOG_CROP_RATIO))
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    low, high = math.exp(LOG_CROP_RATIO[0]), math.exp(LOG_CROP_RATIO[1])
    # Otherwise the largest box in the middle whose sides are in proportion.
    height = _first(fits, height, np.minimum(heights, np.rint(widths / low)))
    width = _first(fits, width, np.minimum(widths, np.rint(heights * high)))
    found = fits.any(axis=1)
    top = np.where(found, _whole(drawn[:, -2], heights - height + 1), (heights - height) // 2)
    left = np.where(found, _whole(drawn[:, -1], widths - width + 1), (widths - width) // 2)
    return top, left, height, width


def _operations(drawn: Floats, share: float) -> tuple[Whole, Floats]:
    """Which of TrivialAugment's operations, and how strong, with a sign."""
    operation = np.where(drawn[:, 0] < share, _whole(drawn[:, 1], OPERATIONS), 0)
    strength = _whole(drawn[:, 2], MAGNITUDES) / (MAGNITUDES - 1)
    return operation, np.where(drawn[:, 3] <= 0.5, -strength, strength)


def _erased(drawn: Floats, size: int, share: float) -> dict[str, Whole]:
    area = size * size * _between(drawn[:, :ATTEMPTS], *ERASED_AREA)
    ratio = np.exp(_between(drawn[:, ATTEMPTS : 2 * ATTEMPTS], *LOG_ERASED_RATIO))
    height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (height < size) & (width < size) & (drawn[:, -3:-2] < share)
    nothing = np.zeros(len(drawn))
    height, width = _first(fits, height, nothing), _first(fits, width, nothing)
    return {
        "erased_top": _whole(drawn[:, -2], size - height + 1),
        "erased_left": _whole(drawn[:, -1], size - width + 1),
        "erased_height": height,
        "erased_width": width,
    }


def _between(drawn: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * drawn


def _whole(drawn: Floats, below: Whole | int) -> Whole:
    """Whole numbers from 0, each as likely."""
    return np.floor(drawn * below).astype(np.int64)


def _first(fits: NDArray[np.bool_], values: Floats, otherwise: Floats) -> Whole:
    chosen = np.take_along_axis(values, fits.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(fits.any(axis=1), chosen, otherwise).astype(np.int64)
