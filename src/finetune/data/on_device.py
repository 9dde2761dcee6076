"""Small sets live on the device: images are uploaded once, and batches of views are made there.

What the reader gives, ``uint8`` at the short side that the network wants, lies in one buffer. A
batch is cut out of it by addresses, resized, mirrored and changed for all of its images at once. So
no process reads, nothing but a few numbers an image travels, and no step waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from finetune.data.batched_operations import applied
from finetune.data.dataset import Draw
from finetune.data.drawn_views import DrawnViews, training_views
from finetune.data.resampling import Places, resampled
from finetune.data.transforms import Augmentation, mean_colour
from finetune.spec.labels import Label
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.known import target_of

ROUNDED_TO = 32  # pixels: few different shapes, so that memory is used again


@dataclass(frozen=True, slots=True)
class DeviceImages:
    """Decoded images of any sizes on a device.

    Attributes:
        pixels: of all images one after the other, each ``(C, H, W)``, ``uint8``.
        offsets: where each begins, int64 ``(N,)``, on the CPU.
        heights, widths: in pixels, int64 ``(N,)``, on the CPU.
        channels: of each.
        labels: int64 ``(N,)``, or float ``(N, K)`` of several an image; on the device.
        soft_labels: ``(N, K)``, on the device, or None.
    """

    pixels: Tensor
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    channels: int
    labels: Tensor
    soft_labels: Tensor | None = None

    @classmethod
    def uploaded(
        cls,
        images: Iterator[Tensor],
        labels: Sequence[Label],
        device: torch.device,
        soft_labels: Tensor | None = None,
    ) -> DeviceImages:
        """Images ``uint8 (C, H, W)`` as they are decoded, sent in parts while more are."""
        parts, waiting, shapes = [], [], []
        for image in images:
            shapes.append(tuple(image.shape))
            waiting.append(image.flatten())
            if len(waiting) == UPLOADED_AT_ONCE:
                parts.append(torch.cat(waiting).to(device))
                waiting.clear()
        parts += [torch.cat(waiting).to(device)] if waiting else []
        sizes = np.array(shapes, np.int64)
        # What a window reads beyond the last image.
        parts.append(parts[0].new_zeros(_rounded(int(sizes[:, 2].max()))))
        return cls(
            torch.cat(parts),
            np.concatenate([[0], sizes.prod(axis=1).cumsum()[:-1]]),
            sizes[:, 1],
            sizes[:, 2],
            int(sizes[0, 0]),
            default_collate([target_of(label) for label in labels]).to(device),
            None if soft_labels is None else soft_labels.to(device),
        )

    def __len__(self) -> int:
        return len(self.offsets)


UPLOADED_AT_ONCE = 256  # images


class DeviceBatches:
    """Batches of views that are made on the device; every iteration is an epoch.

    Not a DataLoader, so that Lightning leaves it as it is; the sampler deals the draws out to
    several processes.

    Args:
        dataset: the images.
        sampler: the draws of an epoch; Lightning tells it which.
        preprocessing: size and interpolation of the views, and the colour of what is empty.
        augmentation: what is random about them; none: they are those of the evaluation.
        batch_size: images a batch.
        drop_last: whether a last batch of fewer is left out.
    """

    def __init__(
        self,
        dataset: DeviceImages,
        sampler: Iterable[Draw],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        batch_size: int,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_sampler = None  # where Lightning looks beside the sampler
        self.preprocessing = preprocessing
        self.augmentation: Augmentation = augmentation
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        own = len(self.sampler)  # type: ignore[arg-type]
        return own // self.batch_size if self.drop_last else -(-own // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        images, order, views = self.dataset, *self._drawn()
        uploaded = _Uploaded.of(images, order, views)
        colour = torch.tensor(mean_colour(self.preprocessing), dtype=torch.float32)
        colour = colour.view(1, -1, 1, 1).to(images.pixels.device)
        for number in range(len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            here = uploaded.of_batch(part)
            batch = self._views(here, views.of(part), colour), images.labels[here.index]
            yield batch if images.soft_labels is None else (*batch, images.soft_labels[here.index])

    def _drawn(self) -> tuple[np.ndarray, DrawnViews]:
        """This process's images of an epoch, and their views.

        Within a batch those with one operation stand side by side.
        """
        draws = list(self.sampler)
        order = np.array([draw.index for draw in draws], np.int64)
        seeds = np.array([draw.seed for draw in draws], np.int64)
        sizes = self.dataset.heights[order], self.dataset.widths[order]
        views = training_views(*sizes, seeds, self.preprocessing, self.augmentation)
        batch = np.arange(len(order)) // self.batch_size
        side_by_side = np.lexsort((views.operation, batch))
        return order[side_by_side], views.of(side_by_side)

    def _views(self, here: _Uploaded, views: DrawnViews, colour: Tensor) -> Tensor:
        height, width = (_rounded(int(side.max())) for side in (views.height, views.width))
        parts = self._cut(here, height, width).float()
        size = self.preprocessing.image_size
        images = resampled(parts, here.rows, here.columns, size, self.preprocessing.interpolation)
        images = images.round_()
        if views.operation.any():
            images = applied(images, views.operation.tolist(), here.magnitude, colour)
        if views.erased_height.any():
            images = torch.where(here.erased(size), colour, images)
        return images.to(torch.uint8).contiguous(memory_format=torch.channels_last)

    def _cut(self, here: _Uploaded, height: int, width: int) -> Tensor:
        """Parts ``uint8 (B, height, C, width)`` of the images, with anything beyond their ends."""
        pixels, device = self.dataset.pixels, here.begin.device
        planes = torch.arange(self.dataset.channels, device=device).view(1, 1, -1)
        rows = torch.arange(height, device=device).view(1, -1, 1)
        begin, plane, pitch = (e.view(-1, 1, 1) for e in (here.begin, here.plane, here.pitch))
        starts = begin + planes * plane + rows * pitch
        windows = pixels.unfold(0, width, 1)  # one at every address; no copy
        return windows[starts.clamp_(max=len(windows) - 1)]


@dataclass(frozen=True, slots=True)
class _Uploaded:
    """What an epoch's views need on the device, sent at once; no float64, which it may not have."""

    index: Tensor
    begin: Tensor  # address of the part that is looked at
    plane: Tensor  # pixels a channel
    pitch: Tensor  # pixels a row
    erasing: Tensor  # (N, 4): top, left, height, width
    looked: Tensor  # (N, 6): start, step and length along the rows and along the columns
    magnitude: Tensor

    @classmethod
    def of(cls, images: DeviceImages, order: np.ndarray, views: DrawnViews) -> _Uploaded:
        height, width = images.heights[order], images.widths[order]
        looked = (
            (views.row_start, views.row_step, views.height),
            (views.column_start, views.column_step, views.width),
        )
        erasing = (views.erased_top, views.erased_left, views.erased_height, views.erased_width)
        values = (
            order,
            images.offsets[order] + views.top * width + views.left,
            height * width,
            width,
            np.stack(erasing, axis=1),
            np.stack([each for side in looked for each in side], axis=1).astype(np.float32),
            views.magnitude.astype(np.float32),
        )
        device = images.pixels.device
        return cls(*(torch.from_numpy(np.ascontiguousarray(v)).to(device) for v in values))

    def of_batch(self, part: slice) -> _Uploaded:
        return _Uploaded(*(getattr(self, field.name)[part] for field in fields(self)))

    @property
    def rows(self) -> Places:
        return Places(*self.looked[:, :3].unbind(1))

    @property
    def columns(self) -> Places:
        return Places(*self.looked[:, 3:].unbind(1))

    def erased(self, size: int) -> Tensor:
        """Which pixels of the views are, ``(B, 1, S, S)``."""
        top, left, height, width = self.erasing.view(-1, 4, 1, 1).unbind(1)
        place = torch.arange(size, device=top.device)
        down, across = place.view(1, -1, 1), place.view(1, 1, -1)
        inside = (down >= top) & (down < top + height) & (across >= left) & (across < left + width)
        return inside.unsqueeze(1)


def _rounded(side: int) -> int:
    return -(-side // ROUNDED_TO) * ROUNDED_TO
