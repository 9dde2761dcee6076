"""Batches of some of a folder's images: random views or the evaluation's, read here or there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data.dataset import Draw, ImageDataset, ShuffledDraws
from finetune.data.device_choice import DeviceChoice
from finetune.data.folder import LabelledImage
from finetune.data.on_device import DeviceBatches
from finetune.data.preview import MOST
from finetune.data.readers import Readers
from finetune.data.transforms import (
    Augmentation,
    collate_bytes,
    evaluation_transform,
    training_transform,
)
from finetune.data.views import SeveralViews
from finetune.data.workers import choose_num_workers
from finetune.runtime import can_pin_memory
from finetune.spec.preprocessing import Preprocessing

Images = Sequence[LabelledImage]
Loader = DataLoader[Any] | DeviceBatches


@dataclass(frozen=True, slots=True)
class ImageLoaders:
    """How images become batches; the settings are those of the data module.

    Attributes:
        readers: of the folder.
        device_choice: where views are made.
        preprocessing, augmentation, batch_size, num_workers, seed: of the batches.
    """

    readers: Readers
    device_choice: DeviceChoice
    preprocessing: Preprocessing
    augmentation: Augmentation
    batch_size: int
    num_workers: int | None
    seed: int

    def training(
        self,
        images: Images,
        *,
        draw_weights: Tensor | None,
        soft_labels: Tensor | None,
        on_device: bool = False,
        drop_last: bool = False,
    ) -> Loader:
        """Shuffled random views, each epoch others; of several processes the share of this one."""
        sampler = ShuffledDraws(len(images), self.seed, draw_weights)
        if on_device:
            return DeviceBatches(
                self.device_choice.uploaded(images, self._reader, soft_labels, self.num_workers),
                sampler,
                self.preprocessing,
                self.augmentation,
                batch_size=self.batch_size,
                drop_last=drop_last,
            )
        dataset = self._random_views(images, soft_labels)
        return self._loader(dataset, sampler=sampler, drop_last=drop_last, collate_fn=collate_bytes)

    def evaluation_on_device(self, images: Images) -> DeviceBatches:
        """Without augmentation, in order, from images that live on the device."""
        return DeviceBatches(
            self.device_choice.uploaded(images, self._reader, None, self.num_workers),
            [Draw(index, 0) for index in range(len(images))],
            self.preprocessing,
            "none",
            batch_size=self.batch_size,
        )

    def evaluation(self, images: Images) -> DataLoader[Any]:
        """Without augmentation, in order."""
        dataset = ImageDataset(images, evaluation_transform(self.preprocessing), self._reader)
        return self._loader(dataset, collate_fn=collate_bytes)

    def several(self, images: Images, preprocessings: Sequence[Preprocessing]) -> DataLoader[Any]:
        """The same with a list of views an image, which is decoded once for all of them."""
        views, reader = SeveralViews(preprocessings), self.readers.of(preprocessings)
        # A tuple of tensors where the dataset knows one; the default collation takes both.
        return self._loader(ImageDataset(images, views, reader))  # type: ignore[arg-type]

    def first(self, images: Images, draw_weights: Tensor | None) -> tuple[Tensor, ...]:
        """Some random views of the first epoch, to be looked at."""
        dataset = self._random_views(images, None)
        draws = itertools.islice(ShuffledDraws(len(images), self.seed, draw_weights), MOST)
        return collate_bytes([dataset[draw] for draw in draws])

    def _random_views(self, images: Images, soft_labels: Tensor | None) -> ImageDataset:
        transform = training_transform(self.preprocessing, self.augmentation)
        return ImageDataset(images, transform, self._reader, soft_labels)

    @property
    def _reader(self) -> Any:
        return self.readers.of([self.preprocessing])

    def _loader(self, dataset: ImageDataset, **options: Any) -> DataLoader[Any]:
        """A loader whose use leaves the global random state as it was."""
        batch_bytes = self.batch_size * 3 * self.preprocessing.image_size**2
        workers = choose_num_workers(dataset.paths, self.num_workers, batch_bytes=batch_bytes)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=can_pin_memory(),
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )
