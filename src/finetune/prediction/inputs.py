"""Images from files, folders and patterns, and the views of them that classifiers need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from glob import glob, has_magic
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from finetune.data.decoding import MAX_PIXELS, ImageReader
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.image_blocks import numbered
from finetune.data.image_bytes import is_there
from finetune.data.in_memory import Held, content_of, each_image
from finetune.data.shard_files import images_within, is_shard
from finetune.data.transforms import evaluation_transform
from finetune.data.walk import images_below
from finetune.errors import DataError, ImageError
from finetune.spec.preprocessing import Preprocessing

FileOrFolder = str | os.PathLike[str]
ImageInput = FileOrFolder | Held


def find_images(images: FileOrFolder | Iterable[FileOrFolder]) -> list[Path]:
    """Files from images, folders (all images below), shards and patterns, in the order given.

    A file named twice is there twice, so that answers line up with what was asked; what a folder or
    pattern brings is left out where it is there already.

    Raises:
        DataError: something does not exist, or there is no image in the whole.
    """
    return [path for path, _ in named_images(images)]


def named_images(images: ImageInput | Iterable[ImageInput]) -> list[tuple[Path, Held | None]]:
    """What :func:`find_images` finds; images in memory are called ``image 0``, by their place.

    Raises:
        DataError: something does not exist, or there is no image in the whole.
    """
    if isinstance(images, Held):
        given: list[ImageInput] = [*each_image(images)]
    else:
        given = [images] if isinstance(images, str | os.PathLike) else list(images or ())
    found: list[tuple[Path, Held | None]] = []
    for number, item in enumerate(given):
        if isinstance(item, Held):
            found.append((Path(f"image {number}"), item))
            continue
        place = os.fspath(item)
        there = set() if os.path.isfile(place) else {path for path, _ in found}
        found += [(file, None) for file in _expand(place) if file not in there]
    if not found:
        raise DataError(
            f"Expected images, found none in {', '.join(map(str, given)) or 'an empty list'}."
        )
    return found


def _expand(item: str) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        return images_below(path)
    if is_shard(item) and path.is_file():
        return images_within(path)
    if path.is_file() or is_there(item):
        return [path]
    if (names := list(numbered(item))) != [item]:
        return [file for name in names for file in _expand(name)]
    if has_magic(item):
        matches = sorted(glob(item, recursive=True))  # "**" names a folder and what is in it
        return list(dict.fromkeys(file for match in matches for file in _expand(match)))
    raise DataError(f"Expected an image or a folder, found nothing at {item}; check the path.")


def stopped_by(reason: str) -> ImageError:
    """The error about an image that cannot be read, where such images are not left out."""
    return ImageError(f"{reason.rstrip('.')}, or leave such files out: --on-bad-image skip.")


class ImageViews(Dataset[tuple[int, list[Tensor] | str]]):
    """Index of an image, and its view for each preprocessing, or why it could not be read."""

    def __init__(
        self,
        images: Sequence[tuple[Path, Held | None]],
        preprocessings: Sequence[Preprocessing],
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
    ) -> None:
        self.paths = [path for path, _ in images]
        self.held = [held for _, held in images]
        self.views = [
            (
                preprocessing,
                evaluation_transform(preprocessing),
            )
            for preprocessing in preprocessings
        ]
        # Decoded once a channel count, at the largest size that any member asks for.
        self.readers = {
            chans: ImageReader.of(
                [p for p in preprocessings if p.in_chans == chans],
                max_pixels=max_pixels,
                max_decoding_mb=max_decoding_mb,
            )
            for chans in {p.in_chans for p in preprocessings}
        }

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, list[Tensor] | str]:
        """The image's index with its views ``(C, S, S)``, or with the reader's message."""
        return index, self.of(partial(self._read, index))

    def of(self, read: Callable[[ImageReader], Tensor]) -> list[Tensor] | str:
        """An image's views ``(C, S, S)``, or why it cannot be read."""
        try:
            decoded = {chans: read(reader) for chans, reader in self.readers.items()}
        except ImageError as error:
            # Not raised here: from another process it would arrive with that one's traceback.
            return str(error)
        return [transform(decoded[p.in_chans]) for p, transform in self.views]

    def _read(self, index: int, reader: ImageReader) -> Tensor:
        path, held = self.paths[index], self.held[index]
        if held is None:
            return reader(path)
        return reader.decode(content_of(held, name=str(path)), name=str(path))


Collated = tuple[list[int], list[Tensor], list[tuple[int, str]]]


def collate_views(items: Sequence[tuple[int, list[Tensor] | str]]) -> Collated:
    """Indexes of the readable images, their views in batches, and the others with the reason."""
    good = [(index, views) for index, views in items if not isinstance(views, str)]
    bad = [(index, reason) for index, reason in items if isinstance(reason, str)]
    return [index for index, _ in good], default_collate([v for _, v in good]) if good else [], bad
