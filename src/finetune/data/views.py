"""One decoded image in several sizes at once, for members that want different preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from finetune.data.transforms import evaluation_transform
from finetune.spec.preprocessing import Preprocessing


class SeveralViews:
    """The evaluation transforms of several preprocessings, on one decoded image.

    Args:
        preprocessings: one view each, in this order.
    """

    def __init__(self, preprocessings: Sequence[Preprocessing]) -> None:
        self.preprocessings = tuple(preprocessings)
        self._transforms = [evaluation_transform(each) for each in self.preprocessings]

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """``uint8 (C, H, W)`` to ``(C_i, S_i, S_i)``; colour becomes grey where wanted."""
        return tuple(
            transform(_with_channels(image, each.in_chans))
            for transform, each in zip(self._transforms, self.preprocessings, strict=True)
        )


def _with_channels(image: Tensor, in_chans: int) -> Tensor:
    if in_chans == 1 and image.shape[0] == 3:
        return functional.rgb_to_grayscale(image)
    return image
