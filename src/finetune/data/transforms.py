"""Augmentation and evaluation transforms, from a preprocessing description.

All work on ``uint8 (C, H, W)`` tensors and end in float ``(C, S, S)`` in ``[0, 1]``, not
normalised: the classifier does that. Mixing images (mixup, CutMix) happens later, on batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from finetune.spec.preprocessing import Preprocessing
from finetune.spec.settings import Augmentation as Augmentation

Transform = Callable[[Tensor], Tensor]

# A strip 100 times as long as wide would become 25,600 pixels long before its centre is cut out.
MAX_ASPECT = 8


def evaluation_transform(preprocessing: Preprocessing, *, to_float: bool = True) -> Transform:
    """Resize the short side, cut out the centre: ``uint8 (C, H, W)`` to float ``(C, S, S)``.

    Without ``to_float`` the result stays ``uint8``, for :func:`collate_bytes` to convert.
    """
    return v2.Compose(
        [
            LimitAspect(MAX_ASPECT),
            v2.Resize(preprocessing.resize_size, _interpolation(preprocessing), antialias=True),
            v2.CenterCrop(preprocessing.image_size),
            *_last(to_float),
        ]
    )


def training_transform(
    preprocessing: Preprocessing, augmentation: Augmentation, *, to_float: bool = True
) -> Transform:
    """A random view: ``uint8 (C, H, W)`` to float ``(C, S, S)``.

    - ``none``: the evaluation transform.
    - ``light``: random crop of at least 35 % of the area, horizontal flip.
    - ``medium``: and TrivialAugment (arXiv 2103.10158) for every second image.
    - ``strong``: crop of at least 20 %, TrivialAugment for every image, random erasing
      (arXiv 1708.04896) of a quarter of them.

    All randomness comes from torch's default generator. ``to_float`` as above.
    """
    match augmentation:
        case "none":
            return evaluation_transform(preprocessing, to_float=to_float)
        case "light":
            steps = [*_random_view(preprocessing, 0.35), *_last(to_float)]
        case "medium":
            trivial = v2.RandomApply([_trivial_augment(preprocessing)], p=0.5)
            steps = [*_random_view(preprocessing, 0.35), trivial, *_last(to_float)]
        case "strong":
            erasing = v2.RandomErasing(p=0.25, value=_mean_colour(preprocessing))
            view = _random_view(preprocessing, 0.2)
            steps = [*view, _trivial_augment(preprocessing), erasing, *_last(to_float)]
        case _:
            assert_never(augmentation)
    return v2.Compose(steps)


def collate_bytes(items: Sequence[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """``uint8 (C, S, S)`` and labels into a batch: float ``(B, C, S, S)`` in ``[0, 1]``, ``(B,)``.

    Soft labels ``(C,)``, where there are any, become a third tensor ``(B, C)``.

    Converting a batch at once moves a quarter of the bytes that stacking floats would.
    """
    images, labels, *soft_labels = zip(*items, strict=True)
    batch = torch.stack(images).to(torch.float32).div_(255), torch.tensor(labels)
    return (*batch, *map(torch.stack, soft_labels))


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
        interpolation=InterpolationMode.BILINEAR, fill=_mean_colour(preprocessing)
    )


def _mean_colour(preprocessing: Preprocessing) -> list[int]:
    """What becomes zero after normalisation, as bytes."""
    return [round(255 * mean) for mean in preprocessing.mean]


def _last(to_float: bool) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True)] if to_float else []


def _interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    return InterpolationMode(preprocessing.interpolation)
