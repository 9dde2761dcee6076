"""Test-time augmentation: named views of the same image, whose probabilities are averaged.

The views are cut from the preprocessed batch, so an image is decoded and resized once whatever
their number. Source of the practice: Krizhevsky et al., ImageNet classification with deep
convolutional neural networks, 2012; what it brings a calibrated ensemble: Ashukha et al., Pitfalls
of in-domain uncertainty estimation and ensembling in deep learning, 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from finetune.errors import UsageError
from finetune.networks.normalising import unit_floats
from finetune.tasks.task import Task

View = Callable[[Tensor], Tensor]
Kind = TypeVar("Kind")  # what images are kept by: the preprocessing
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
    task: Task,
    answer: Callable[[dict[Kind, Tensor]], Tensor],
    images: dict[Kind, Tensor],
    views: Sequence[View],
) -> Tensor:
    """Outputs whose answer is the mean of those to the views; one view changes no bit.

    Views are made where the images are; the mean is taken on the CPU, in float64.
    """
    images = {key: unit_floats(value) for key, value in images.items()}
    answers = [answer({key: view(value) for key, value in images.items()}) for view in views]
    if len(answers) == 1:
        return answers[0]
    together = torch.stack([each.cpu() for each in answers])
    return task.mixture(together, [1 / len(views)] * len(views)).to(together.dtype)


def _crop(images: Tensor, down: float, right: float) -> Tensor:
    """A crop resized to the images' own size; it stands at 0 (top, left) to 1 (bottom, right)."""
    side = images.shape[-1]
    kept = round(side * ZOOM)
    top, left = round(down * (side - kept)), round(right * (side - kept))
    crop = images[..., top : top + kept, left : left + kept]
    return torch.nn.functional.interpolate(
        crop, size=(side, side), mode="bilinear", align_corners=False
    )
