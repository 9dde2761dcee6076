"""How a backbone wants its images: one description for data, networks and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

Interpolation = Literal["nearest", "bilinear", "bicubic"]
LongSide = Literal["truncated", "rounded"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Image size, crop and normalisation of one backbone.

    Attributes:
        image_size: side of the square that the network sees, in pixels.
        mean, std: statistics of the normalisation, for images in ``[0, 1]``, one value a channel.
        crop_fraction: share of the resized short side that the centre crop keeps, in ``(0, 1]``.
        interpolation: of the resize, always antialiased.
        long_side: how the long side becomes a whole number of pixels when the short one is resized:
            "truncated" as torchvision and timm do, "rounded" in checkpoints of version 1.

    Examples:
        >>> finetune.Preprocessing(image_size=224, crop_fraction=0.875).resize_size
        256
    """

    image_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bicubic"
    long_side: LongSide = "truncated"

    def __post_init__(self) -> None:
        if self.image_size < 1 or not 0 < self.crop_fraction <= 1:
            raise ValueError(
                "Expected image_size >= 1 and crop_fraction in (0, 1], "
                f"found {self.image_size} and {self.crop_fraction}."
            )
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"Expected as many means as stds, found {self.mean}, {self.std}.")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"Expected interpolation to be one of {get_args(Interpolation)}, "
                f"found {self.interpolation!r}."
            )
        if self.long_side not in get_args(LongSide):
            raise ValueError(
                f"Expected long_side to be one of {get_args(LongSide)}, found {self.long_side!r}."
            )

    @property
    def in_chans(self) -> int:
        """Channels of the images: 3 for RGB, 1 for greyscale."""
        return len(self.mean)

    @property
    def resize_size(self) -> int:
        """Short side in pixels before the centre crop."""
        return int(self.image_size / self.crop_fraction)

    def with_image_size(self, image_size: int | None) -> Preprocessing:
        """The same preprocessing at another size; None keeps the backbone's own."""
        return self if image_size is None else replace(self, image_size=int(image_size))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint with it loads with ``weights_only=True``."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`."""
        return cls(
            image_size=int(values["image_size"]),
            mean=tuple(float(value) for value in values["mean"]),
            std=tuple(float(value) for value in values["std"]),
            crop_fraction=float(values["crop_fraction"]),
            interpolation=cast(Interpolation, values["interpolation"]),
            long_side=cast(LongSide, values.get("long_side", "rounded")),
        )
