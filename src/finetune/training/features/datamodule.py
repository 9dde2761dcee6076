"""Batches of cached activations instead of images, for phases whose lower stages are frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from finetune.runtime import Runtime
from finetune.spec.images import LabelledImage, Split
from finetune.spec.protocols import FitData
from finetune.spec.splits import SplitRecord
from finetune.tasks.known import target_of
from finetune.training.features.store import Activations

Choice = tuple[int, int]  # image, view
Order = Callable[[torch.Generator], list[int]]


class CachedActivationsDataModule(LightningDataModule):
    """The train and val activations of a data module's images.

    Args:
        original: answers what is asked about images, classes and settings.
        views: the training activations, one entry a stored view; an epoch takes one of them for
            each image.
        val: the val activations, or None where nothing is held out.
    """

    def __init__(
        self, original: FitData, views: Sequence[Activations], val: Activations | None
    ) -> None:
        super().__init__()
        self.original = original
        self.views = views
        self.val = val

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """The original's images."""
        return self.original.images(split)

    def names(self, split: Split) -> list[str]:
        """Their paths below the root."""
        return self.original.names(split)

    @property
    def split_record(self) -> SplitRecord:
        """On which side each image stands."""
        return self.original.split_record

    def class_counts(self, split: Split) -> Mapping[str, int]:
        """The original's images of each class."""
        return self.original.class_counts(split)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, one of the stored views of each image."""
        labels = [target_of(image.label) for image in self.images("train")]
        return DataLoader(
            _CachedViews(self.views, labels, self.original.soft_labels),
            batch_size=Runtime().share_of_batch(self.original.batch_size),
            sampler=_ShuffledViews(
                len(labels), len(self.views), self.original.seed, self.original.epoch_order
            ),
            drop_last=self.original.ends_lonely,
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """In order."""
        if self.val is None:
            return []
        labels = [target_of(image.label) for image in self.images("val")]
        return DataLoader(
            _CachedViews([self.val], labels),
            batch_size=Runtime().share_of_batch(self.original.batch_size),
            generator=torch.Generator(),
        )


class _CachedViews(Dataset[tuple[Any, ...]]):
    def __init__(
        self,
        views: Sequence[Activations],
        labels: Sequence[int | Tensor],
        soft_labels: Tensor | None = None,
    ) -> None:
        self.views = views
        self.labels = labels
        self.soft_labels = soft_labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, choice: int | Choice) -> tuple[Any, ...]:
        index, view = choice if isinstance(choice, tuple) else (choice, 0)
        item = self.views[view][index], self.labels[index]
        return item if self.soft_labels is None else (*item, self.soft_labels[index])


class _ShuffledViews(DistributedSampler[Choice]):
    """Order and views of an epoch, from ``(seed, epoch)`` alone, so that a resumed fit goes on."""

    def __init__(self, length: int, views: int, seed: int, order: Order) -> None:
        runtime = Runtime()
        images: Any = range(length)
        super().__init__(images, runtime.world_size, runtime.rank, shuffle=False, seed=seed)
        self.length, self.views, self.order = length, views, order

    def __iter__(self) -> Iterator[Choice]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        order = self.order(generator)
        views = torch.randint(self.views, (self.length,), generator=generator).tolist()
        return iter(Runtime().deal(list(zip(order, views, strict=True))))

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0; Lightning calls it."""
        self.epoch = epoch
