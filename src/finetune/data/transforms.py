"""Augmentation and evaluation transforms, from a preprocessing description.

All work on ``uint8 (C, H, W)`` tensors and end in ``uint8 (C, S, S)``: bytes go to the device,
and the classifier converts and normalises them there. Mixing (mixup, CutMix) happens later, on
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from finetune.spec.preprocessing import Preprocessing
from finetune.spec.settings import Augmentation as Augmentation

Transform = Callable[[Tensor], Tensor]

# A strip 100 times as long as wide would become 25,600 pixels long before its centre is cut out.
MAX_ASPECT = 8

# Of the presets: least share of the area that a crop keeps, share of the images that TrivialAugment
# changes, and of those of which a part is erased.
LEAST_AREA: Mapping[Augmentation, float] = {"light": 0.35, "medium": 0.35, "strong": 0.2}
TRIVIAL_SHARE: Mapping[Augmentation, float] = {"light": 0.0, "medium": 0.5, "strong": 1.0}
ERASED_SHARE: Mapping[Augmentation, float] = {"light": 0.0, "medium": 0.0, "strong": 0.25}


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Resize the short side, cut out the centre: ``uint8 (C, H, W)`` to ``(C, S, S)``."""
    return v2.Compose(
        [
            LimitAspect(MAX_ASPECT),
            v2.Resize(preprocessing.resize_size, _interpolation(preprocessing), antialias=True),
            v2.CenterCrop(preprocessing.image_size),
        ]
    )


def training_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """A random view: ``uint8 (C, H, W)`` to ``(C, S, S)``.

    - ``none``: the evaluation transform.
    - ``light``: random crop of at least 35 % of the area, horizontal flip.
    - ``medium``: and TrivialAugment (arXiv 2103.10158) for every second image.
    - ``strong``: crop of at least 20 %, TrivialAugment for every image, random erasing
      (arXiv 1708.04896) of a quarter of them.

    All randomness comes from torch's default generator.
    """
    if augmentation == "none":
        return evaluation_transform(preprocessing)
    steps = _random_view(preprocessing, LEAST_AREA[augmentation])
    share = TRIVIAL_SHARE[augmentation]
    if share:
        trivial = _trivial_augment(preprocessing)
        steps.append(trivial if share == 1 else v2.RandomApply([trivial], p=share))
    if ERASED_SHARE[augmentation]:
        colour = mean_colour(preprocessing)
        steps.append(v2.RandomErasing(p=ERASED_SHARE[augmentation], value=colour))
    return v2.Compose(steps)


def collate_bytes(items: Sequence[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """``uint8 (C, S, S)`` and labels into a batch: ``uint8 (B, C, S, S)``, int64 ``(B,)``.

    Soft labels ``(C,)``, where there are any, become a third tensor ``(B, C)``. Channels are
    last in memory, as convolutions compute fastest.
    """
    images, labels, *soft_labels = zip(*items, strict=True)
    batch = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return (batch, torch.tensor(labels), *map(torch.stack, soft_labels))


class RandomView(v2.RandomResizedCrop):
    """torchvision's random crop, resized in the layout in which torch is twice as fast."""

    def transform(self, inpt: Tensor, params: dict[str, int]) -> Tensor:
        """``uint8 (C, H, W)`` to ``(C, S, S)``."""
        part = functional.crop(inpt, **params)
        dense = part.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        resized: Tensor = functional.resize(
            dense, self.size, interpolation=self.interpolation, antialias=True
        )
        return resized


class LimitAspect(nn.Module):
    """Cut the ends off a strip, so that no side is longer than ``limit`` times the other."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, image: Tensor) -> Tensor:
        """``(C, H, W)`` to a part of it, the centre."""
        height, width = image.shape[-2:]
        longest = max(1, int(self.limit * min(height, width)))
        if max(height, width) <= longest:
            return image
        return functional.center_crop(image, [min(height, longest), min(width, longest)])


def _random_view(preprocessing: Preprocessing, least_area: float) -> list[nn.Module]:
    return [
        RandomView(
            preprocessing.image_size,
            scale=(least_area, 1.0),
            interpolation=_interpolation(preprocessing),
        ),
        v2.RandomHorizontalFlip(),
    ]


def _trivial_augment(preprocessing: Preprocessing) -> nn.Module:
    return v2.TrivialAugmentWide(
        interpolation=InterpolationMode.BILINEAR, fill=mean_colour(preprocessing)
    )


def mean_colour(preprocessing: Preprocessing) -> list[int]:
    """What becomes zero after normalisation, as bytes."""
    return [round(255 * mean) for mean in preprocessing.mean]


def _interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    return InterpolationMode(preprocessing.interpolation)
