"""An image's bytes, wherever it lies: in a file of its own, in a tar shard or in a table."""

from __future__ import annotations

import errno
import os

from finetune.data.image_tables import TABLES, cell_bytes, rows_of
from finetune.data.tar_shards import index_of
from finetune.errors import DataError
from finetune.spec.images import content_id, place_of

AnyPath = str | os.PathLike[str]


def image_bytes(path: AnyPath) -> bytes:
    """All of it; ``x.tar::name`` and ``x.parquet::row`` are read where they lie.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    holder, name = place_of(path)
    if not name:
        return holder.read_bytes()
    if holder.suffix.lower() in TABLES:
        try:
            return cell_bytes(holder, int(name))
        except (DataError, ValueError, IndexError) as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
    place = index_of(holder).places.get(name)
    if place is None:
        raise FileNotFoundError(errno.ENOENT, "the shard has no such image", str(path))
    with holder.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def image_id(path: AnyPath) -> str:
    """:func:`~finetune.spec.images.content_id` of it."""
    return content_id(image_bytes(path))


def image_size(path: AnyPath) -> int:
    """About how many bytes it has; 0 of one that is not there."""
    holder, name = place_of(path)
    try:
        if not name:
            return holder.stat().st_size
        if holder.suffix.lower() in TABLES:
            return holder.stat().st_size // max(rows_of(holder), 1)
        return index_of(holder).places[name].size
    except (OSError, KeyError, DataError):
        return 0


def is_there(path: AnyPath) -> bool:
    """Whether there is such an image, readable or not."""
    holder, name = place_of(path)
    if not name or not holder.is_file():
        return holder.is_file()
    try:
        if holder.suffix.lower() in TABLES:
            return name.isdecimal() and int(name) < rows_of(holder)
        return name in index_of(holder).places
    except DataError:
        return False
