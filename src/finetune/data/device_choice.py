"""Whether a folder's images live on the device, and what was uploaded there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data.cache import estimated_bytes
from finetune.data.dataset import ImageDataset, Reader
from finetune.data.decoding import ImageReader
from finetune.data.folder import LabelledImage
from finetune.data.on_device import DeviceImages
from finetune.data.workers import choose_num_workers
from finetune.runtime import device_memory
from finetune.spec.preprocessing import Preprocessing

OnDevice = Literal["auto", "on", "off"]

SHARE = 0.25  # of the device's memory that images may take


@dataclass(slots=True)
class DeviceChoice:
    """Where views are made: on the device, or by the processes that read.

    Attributes:
        wish: auto: on an accelerator with room for the images; on: wherever batches go.
        device: where they go; None as long as nobody has said.
    """

    wish: OnDevice
    device: torch.device | None = None
    _uploaded: dict[tuple[Any, ...], DeviceImages] = field(default_factory=dict, init=False)

    def takes(self, images: int, preprocessing: Preprocessing) -> tuple[bool, str]:
        """Whether so many images live on the device, and why.

        Args:
            images: of all sides that a fit goes through.
            preprocessing: how large they are kept.
        """
        if self.wish != "auto":
            return self.wish == "on", "as given"
        if self.device is None or self.device.type == "cpu":
            return False, "no accelerator: the processor reads and augments"
        needed = images * estimated_bytes(ImageReader.of([preprocessing]))
        room = device_memory(self.device)
        takes = room is not None and needed <= SHARE * room
        has = "an unknown amount" if room is None else f"{room / 2**30:.0f} GiB"
        return takes, f"{images} images take {needed / 2**30:.2f} GiB, the device has {has}"

    def uploaded(
        self,
        images: Sequence[LabelledImage],
        reader: Reader,
        soft_labels: Tensor | None,
        num_workers: int | None,
    ) -> DeviceImages:
        """The images on the device; uploaded once, whatever loaders ask for them."""
        device = self.device or torch.device("cpu")
        key = (device, tuple(image.path for image in images), id(reader))
        if key not in self._uploaded:
            dataset = ImageDataset(images, _as_it_is, reader)
            loader = DataLoader(
                dataset,
                batch_size=None,
                num_workers=choose_num_workers(dataset.paths, num_workers),
                generator=torch.Generator(),
            )
            self._uploaded[key] = DeviceImages.uploaded(
                (pixels for pixels, *_ in loader), [image.label for image in images], device
            )
        found = self._uploaded[key]
        return found if soft_labels is None else replace(found, soft_labels=soft_labels.to(device))


def _as_it_is(pixels: Tensor) -> Tensor:
    return pixels
