"""The one Dataset: labelled images through a reader and a transform."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from finetune.data.decoding import ImageReader
from finetune.data.folder import LabelledImage
from finetune.errors import UsageError
from finetune.runtime import Runtime
from finetune.spec.labels import Label, indexes, several
from finetune.tasks.known import target_of

Reader = Callable[[Path], Tensor]


@dataclass(frozen=True, slots=True)
class Draw:
    """One image of an epoch and the seed of its random view."""

    index: int
    seed: int


Item = tuple[Tensor, int | Tensor] | tuple[Tensor, int | Tensor, Tensor]


class ImageDataset(Dataset[Item]):
    """``(transform(reader(path)), label)``.

    With ``soft_labels`` ``(N, C)`` a third entry is the image's row of them.

    Indexed by a number, or by a :class:`Draw`, whose seed then decides the random view alone: the
    same seed gives the same tensor whatever the number of workers, and the global random state
    is left as it was.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        transform: Callable[[Tensor], Tensor],
        reader: Reader | None = None,
        soft_labels: Tensor | None = None,
    ) -> None:
        self.images = images
        self.soft_labels = soft_labels
        self.transform = transform
        self.reader: Reader = ImageReader() if reader is None else reader

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> list[Path]:
        """The file of each image."""
        return [image.path for image in self.images]

    def __getitem__(self, index: int | Draw) -> Item:
        """The image as the transform leaves it, and its label or labels."""
        if not isinstance(index, Draw):
            return self._item(index)
        state = torch.random.get_rng_state()
        try:
            # Not torch.manual_seed: that would seed the accelerators of this process as well.
            torch.default_generator.manual_seed(index.seed)
            return self._item(index.index)
        finally:
            torch.random.set_rng_state(state)

    def _item(self, index: int) -> Item:
        image = self.images[index]
        view = self.transform(self.reader(image.path))
        if self.soft_labels is None:
            return view, target_of(image.label)
        return view, target_of(image.label), self.soft_labels[index]


def shuffled_order(
    length: int, generator: torch.Generator, weights: Tensor | None = None
) -> list[int]:
    """The images of an epoch: each once or, with weights ``(length,)``, drawn by them."""
    if weights is None:
        return torch.randperm(length, generator=generator).tolist()
    return torch.multinomial(weights, length, replacement=True, generator=generator).tolist()


def balancing_weights(labels: Sequence[Label]) -> Tensor:
    """A weight an image with which every class is drawn equally often, float64 ``(N,)``.

    Raises:
        UsageError: several labels an image, which no weight of an image balances, or numbers.
    """
    if several(labels):
        raise UsageError(
            "Expected --data.balanced false for several labels an image, found true; leave it out: "
            "thresholds are chosen for each label."
        )
    if any(isinstance(label, float) for label in labels):
        raise UsageError(
            "Expected --data.balanced false for numbers, found true; leave it out: there are no "
            "classes."
        )
    classes = torch.tensor([index for label in labels for index in indexes(label)])
    return 1 / classes.bincount().double()[classes]


class ShuffledDraws(DistributedSampler[Draw]):
    """A new order and new random views every epoch, both from ``(seed, epoch)`` alone.

    Lightning calls :meth:`set_epoch`, so a resumed fit is as the uninterrupted one would;
    elsewhere each pass counts as the next epoch. Dealt out to the processes where there are
    several, so that their batches are together those of one; Lightning would shuffle them again.
    """

    def __init__(self, length: int, seed: int, weights: Tensor | None = None) -> None:
        runtime = Runtime()
        images: Any = range(length)
        super().__init__(images, runtime.world_size, runtime.rank, shuffle=False, seed=seed)
        self.length = length
        self.weights = weights
        self.epoch = 0

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        order = shuffled_order(self.length, generator, self.weights)
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        draws = [Draw(index, seed) for index, seed in zip(order, seeds, strict=True)]
        return iter(Runtime().deal(draws))

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0."""
        self.epoch = epoch
