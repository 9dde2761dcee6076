"""Which image: known by its whole content, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.spec.labels import Label, indexes, order

ID_BYTES = 16
SEPARATOR = "::"  # between a file that holds images and the name of one
_WITHIN = re.compile(rf"(.*?\.(?:tar|parquet)){SEPARATOR}(.+)", re.IGNORECASE | re.DOTALL)
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One labelled image of a collection.

    Attributes:
        id: of its whole content, 32 hexadecimal digits; see :func:`content_id`.
        path: below the collection's root, with slashes, in Unicode's composed form (NFC).
        label: index into the class names of what it belongs to, or which of them it has.
    """

    id: str
    path: str
    label: Label


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image: its file, the index of its class, and on which side it stands.

    Attributes:
        path: the file, as found (not resolved); in a shard or table ``x.tar::name``.
        label: index into the class names of the folder that it belongs to; or which of them it has.
        group: images of one group (a patient, a burst, a video) stay on one side of every split.
        split: None as long as the folder is unsplit.
        fold: number of the cross-validation fold that holds the image out, if there are folds.
        id: of the whole content, see :func:`content_id`; empty until the file was read.
        stamp: of the file as it was read, see :func:`~finetune.cache_dir.file_stamp`.
    """

    path: Path
    label: Label
    group: str | None = None
    split: Split | None = None
    fold: int | None = None
    id: str = ""
    stamp: tuple[int, ...] = field(default=(), compare=False, repr=False)


def label_counts(images: Iterable[LabelledImage]) -> Counter[int]:
    """How many of the images have each name, by its index."""
    return Counter(index for image in images for index in indexes(image.label))


def within(holder: Path, name: object) -> Path:
    """The path of an image in a shard or table; :func:`place_of` takes it apart."""
    return Path(f"{holder}{SEPARATOR}{name}")


def place_of(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The file that holds an image, and its name in it, with slashes; that of a file is empty."""
    text = os.fspath(path)
    within = _WITHIN.fullmatch(text) if SEPARATOR in text else None
    return (Path(path), "") if within is None else (Path(within[1]), within[2].replace(os.sep, "/"))


def by_side(image: LabelledImage) -> tuple[int, tuple[float, ...]]:
    """Sorts images by side, those that stand on none last, then by label."""
    side = len(SPLITS) if image.split is None else SPLITS.index(image.split)
    return side, order(image.label)


def content_id(content: bytes) -> str:
    """BLAKE2b of the whole content with 128 bits, as 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=ID_BYTES).hexdigest()


def file_id(path: str | os.PathLike[str]) -> str:
    """:func:`content_id` of a file of any size, read once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=ID_BYTES)
