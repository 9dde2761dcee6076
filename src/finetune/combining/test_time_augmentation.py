"""Test-time augmentation: named views of the same image, whose probabilities are averaged.

The views are cut from the preprocessed batch, so an image is decoded and resized once whatever
their number. Source of the practice: Krizhevsky et al., ImageNet classification with deep
convolutional neural networks, 2012; what it brings a calibrated ensemble: Ashukha et al., Pitfalls
of in-domain uncertainty estimation and ensembling in deep learning, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune.errors import UsageError
from finetune.networks.normalising import unit_floats

View = Callable[[Tensor], Tensor]
ZOOM = 0.875  # share of the side that a crop keeps


def original(images: Tensor) -> Tensor:
    """The images ``(B, C, S, S)`` themselves."""
    return images


def mirrored(images: Tensor) -> Tensor:
    """Left and right swapped."""
    return images.flip(-1)


def zoomed(images: Tensor) -> Tensor:
    """The centre, enlarged to the whole."""
    return _crop(images, 0.5, 0.5)


def zoomed_mirrored(images: Tensor) -> Tensor:
    """The centre, enlarged and mirrored."""
    return mirrored(zoomed(images))


def upper_left(images: Tensor) -> Tensor:
    """The upper left crop, enlarged."""
    return _crop(images, 0.0, 0.0)


def lower_right(images: Tensor) -> Tensor:
    """The lower right crop, enlarged."""
    return _crop(images, 1.0, 1.0)


def upper_right(images: Tensor) -> Tensor:
    """The upper right crop, enlarged."""
    return _crop(images, 0.0, 1.0)


def lower_left(images: Tensor) -> Tensor:
    """The lower left crop, enlarged."""
    return _crop(images, 1.0, 0.0)


# In the order in which they are used.
VIEWS: dict[str, View] = {
    view.__name__: view
    for view in (
        original,
        mirrored,
        zoomed,
        zoomed_mirrored,
        upper_left,
        lower_right,
        upper_right,
        lower_left,
    )
}


def chosen_views(test_time_augmentation: int | Sequence[str]) -> list[View]:
    """Views by their number (the first so many) or by their names.

    Raises:
        UsageError: a number outside the list, or a name that no view has.
    """
    if isinstance(test_time_augmentation, int):
        if not 1 <= test_time_augmentation <= len(VIEWS):
            raise UsageError(
                f"Expected 1 to {len(VIEWS)} views, found {test_time_augmentation}; "
                "4 are two sizes and their mirror images."
            )
        return list(VIEWS.values())[:test_time_augmentation]
    unknown = [name for name in test_time_augmentation if name not in VIEWS]
    if unknown or not test_time_augmentation:
        raise UsageError(
            f"Expected views out of {', '.join(VIEWS)}, found {', '.join(unknown) or 'none'}."
        )
    return [VIEWS[name] for name in test_time_augmentation]


def mean_over_views(
    answer: Callable[[dict[object, Tensor]], Tensor],
    images: dict[object, Tensor],
    views: Sequence[View],
) -> Tensor:
    """The log of the mean over the views of the softmax of ``answer``; one view changes no bit.

    Views are made where the images are; the mean is taken on the CPU, in float64.
    """
    images = {key: unit_floats(value) for key, value in images.items()}
    first = answer({key: views[0](value) for key, value in images.items()})
    if len(views) == 1:
        return first
    logs = first.cpu().double().log_softmax(dim=-1)
    for view in views[1:]:
        further = answer({key: view(value) for key, value in images.items()})
        logs = torch.logaddexp(logs, further.cpu().double().log_softmax(dim=-1))
    return (logs - math.log(len(views))).to(first.dtype)


def _crop(images: Tensor, down: float, right: float) -> Tensor:
    """A crop resized to the images' own size; it stands at 0 (top, left) to 1 (bottom, right)."""
    side = images.shape[-1]
    kept = round(side * ZOOM)
    top, left = round(down * (side - kept)), round(right * (side - kept))
    crop = images[..., top : top + kept, left : left + kept]
    return torch.nn.functional.interpolate(
        crop, size=(side, side), mode="bilinear", align_corners=False
    )
