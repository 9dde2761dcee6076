"""What rooms may ask of each other: the seams, typed.

Whoever trains, combines or judges asks a data module these questions and no others; other sources
of images need these answers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from finetune.spec.images import LabelledImage, Split
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.settings import Augmentation
from finetune.spec.splits import SplitRecord

if TYPE_CHECKING:  # the first screen imports nothing heavy
    import torch
    from torch import Tensor

Batch = TypeVar("Batch", covariant=True)


class Batches(Protocol[Batch]):
    """One pass over some images, such as a ``DataLoader``."""

    def __len__(self) -> int:
        """How many batches."""

    def __iter__(self) -> Iterator[Batch]:
        """They, in order."""


class StreamedImage(NamedTuple):
    """One image of a stream.

    Attributes:
        name: under which it is answered.
        read: gives the file's bytes, from any thread, or raises an ``ImageError``.
    """

    name: str
    read: Callable[[], bytes]


class ImageBlock(Protocol):
    """Some images that are read together, as a plain value that other processes can be sent."""

    @property
    def identity(self) -> str:
        """Equal where the same images lie in the same order, as far as a listing tells."""

    @property
    def first(self) -> str:
        """The name of the first image, or of the file that holds all, for messages."""

    def images(self) -> Iterator[StreamedImage]:
        """Each image, in order.

        Raises:
            ImageError: the rest of them cannot be read, for the file that holds them is damaged.
            DataError: no image of the block can be read now.
        """


class NamedImages(Protocol):
    """Labelled images, each on one side of a split."""

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """Those of one side, in the order of its unshuffled batches."""

    def names(self, split: Split) -> list[str]:
        """Their paths below the root."""


class ImageSource(NamedImages, Protocol):
    """Labelled images, and what their labels mean."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What labels are indexes into."""


class HeldOutData(ImageSource, Protocol):
    """What whoever combines asks of images: every view of them that members need."""

    def evaluation_dataloader(
        self, split: Split, *, preprocessings: Sequence[Preprocessing] | None = None
    ) -> Batches[tuple[Sequence[Tensor], Tensor]]:
        """Images ``(B, C, S, S)`` in ``[0, 1]``, a batch for each preprocessing, and labels."""


class PhaseData(NamedImages, Protocol):
    """What a phase of a fit learns from: batches, whatever is in them, and whose they are."""

    def class_counts(self, split: Split) -> Mapping[str, int]:
        """Images of each class."""

    @property
    def split_record(self) -> SplitRecord:
        """On which side each image stands."""

    def train_dataloader(self) -> Batches[Sequence[Tensor]]:
        """Inputs and labels, perhaps a teacher's probabilities; shuffled anew each epoch."""

    def val_dataloader(self) -> Batches[Sequence[Tensor]]:
        """Inputs and labels in order; empty where nothing is held out."""


class Seeded(Protocol):
    """How images were dealt out."""

    @property
    def seed(self) -> int:
        """Of the split."""

    @property
    def fold(self) -> int | None:
        """That is held out, if it is one of a cross-validation."""


class FitData(HeldOutData, PhaseData, Protocol):
    """What a whole fit asks of its images.

    Attributes:
        batch_size: is lowered where memory does not suffice.
        seed: of order and random views.
        augmentation: random views of training images.
        balanced: whether every class is drawn equally often.
        num_workers: processes that read images; None: chosen from cores and data size.
        soft_labels: a teacher's probabilities ``(N, C)`` for the training images, or None.
    """

    batch_size: int
    seed: int
    augmentation: Augmentation
    balanced: bool
    num_workers: int | None
    soft_labels: Tensor | None

    @property
    def split_settings(self) -> Seeded:
        """How much is held out, and how."""

    @property
    def val_is_given(self) -> bool:
        """Whether folder or manifest say which images are val, which then were not dealt out."""

    def together(self, images: Sequence[LabelledImage]) -> list[Hashable | None]:
        """What keeps each image with others on one side of any split; None: nothing does."""

    @property
    def draw_weights(self) -> Tensor | None:
        """How often each training image is drawn, ``(N,)``; None: each once an epoch."""

    @property
    def ends_lonely(self) -> bool:
        """Whether a process's last training batch is one image, which has no variance."""

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """The training images of an epoch, by their indexes."""

    def reader(self, preprocessing: Preprocessing | None = None) -> Callable[[Path], Tensor]:
        """Reads an image at the size that a preprocessing asks for."""
