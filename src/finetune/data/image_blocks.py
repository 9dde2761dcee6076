"""Any number of images as blocks: listed one after the other, and each read as a stream.

A block is a plain value that another process can be sent. Nothing but the block at hand is held.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

from finetune import storage
from finetune.data.image_tables import TABLES, row_blocks
from finetune.data.tar_shards import SHARDS, TarBlock
from finetune.data.walk import Walk, lines_about_expected, unlisted_message, why_hidden
from finetune.errors import DataError, ImageError, ImageFolderError, UsageError
from finetune.spec.protocols import ImageBlock, StreamedImage

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ListedFile(NamedTuple):
    """One image file, unopened."""

    address: str
    size: int


@dataclass(frozen=True, slots=True)
class FileBlock:
    """Some files, of folders, patterns or a store, in order."""

    files: tuple[ListedFile, ...]

    @property
    def identity(self) -> str:
        """Addresses and sizes."""
        return "\n".join(f"{file.size} {file.address}" for file in self.files)

    @property
    def first(self) -> str:
        """The first file."""
        return self.files[0].address

    def images(self) -> Iterator[StreamedImage]:
        """Each file, read when asked for."""
        for file in self.files:
            yield StreamedImage(file.address, partial(_content, file.address))


def image_blocks(
    given: Iterable[str], rows: int, size_of: Callable[[int], int]
) -> Iterator[ImageBlock]:
    """The blocks of all that was given, in a fixed order.

    Files make blocks together; a tar shard is a block, and so are some rows of a table.

    Args:
        given: files, folders and patterns, here or of a store; ``x{000..123}.tar`` names many.
        rows: how many of a table make a block.
        size_of: of the block with this number, how many files it takes.

    Raises:
        DataError: something does not exist or cannot be listed, or a table without images.
    """
    number = 0
    waiting: list[ListedFile] = []

    def gathered() -> Iterator[ImageBlock]:
        nonlocal number
        if waiting:
            number += 1
            yield FileBlock(tuple(waiting))
            waiting.clear()

    for address in (each for item in given for each in numbered(item)):
        for found in _found_at(address, rows):
            if isinstance(found, ListedFile):
                waiting.append(found)
                if len(waiting) >= size_of(number):
                    yield from gathered()
            else:
                yield from gathered()
                number += 1
                yield found
    yield from gathered()


def each_once(given: Iterable[str]) -> list[str]:
    """What was given, if nothing of it lies in something else of it.

    Raises:
        UsageError: something does; its images would be answered twice.
    """
    seen: set[str] = set()
    places = [item.rstrip("/") or item for item in given]
    for place in places:
        if place in seen:
            raise UsageError(f"Expected each place once, found {place} again; name it once.")
        seen.add(place)
    for place in places:
        if around := seen.intersection(_parents(place)):
            raise UsageError(
                f"Expected places that lie apart, found {place} in {min(around)}; leave one out."
            )
    return places


def numbered(item: str) -> Iterator[str]:
    """``a{08..11}`` as ``a08, a09, a10, a11``, as a shell has it."""
    found = None if os.path.exists(item) else _RANGE.search(item)
    if found is None:
        yield item
        return
    low, high = found.groups()
    for value in range(int(low), int(high) + 1):
        name = str(value).zfill(len(low) if low.startswith("0") else 0)
        yield from numbered(item[: found.start()] + name + item[found.end() :])


def _found_at(address: str, rows: int) -> Iterator[ListedFile | ImageBlock]:
    try:
        size = storage.size_of(address)
    except FileNotFoundError:
        for match in _matches(address):
            yield from _each_in(match.address, match.size, rows)
    else:
        yield from _each_in(address, size, rows)


def _each_in(address: str, size: int | None, rows: int) -> Iterator[ListedFile | ImageBlock]:
    if size is None:
        files = _remote_images if storage.is_remote(address) else _local_images
        yield from files(address)
    elif address.lower().endswith(SHARDS):
        yield TarBlock(address, size)
    elif address.lower().endswith(TABLES):
        yield from row_blocks(address, size, rows)
    else:
        yield ListedFile(address, size)


def _matches(pattern: str) -> Iterator[storage.Entry]:
    """What a pattern names, in order; what lies in a folder that it names comes with that."""
    folder = pattern.removesuffix("/**")
    if not has_magic(pattern):
        raise DataError(
            f"Expected an image or a folder, found nothing at {pattern}; check the path."
        )
    if folder != pattern and not has_magic(folder):
        yield storage.Entry(folder, None)  # listed step by step, not held as a whole
        return
    folders: set[str] = set()
    for entry in storage.matches(pattern):
        if not folders.intersection(_parents(entry.address)):
            yield entry
            if entry.size is None:
                folders.add(entry.address.rstrip("/"))


def _parents(address: str) -> Iterator[str]:
    while address := address.rstrip("/").rpartition("/")[0]:
        yield address


def _local_images(folder: str) -> Iterator[ListedFile]:
    walk = Walk()
    for path in walk.images_below(storage.local_path(folder)):
        yield ListedFile(path, os.stat(path).st_size)
    if walk.unlisted:
        raise ImageFolderError(unlisted_message(walk))
    for line in lines_about_expected(walk.unused):
        warnings.warn(f"{folder}: {line}", stacklevel=2)


def _remote_images(folder: str) -> Iterator[ListedFile]:
    """As in a folder of this machine: each folder's own first, hidden ones and junk left out."""
    walk = Walk()
    pending = [folder]
    while pending:
        entries = storage.listed(pending.pop())
        shown = [e for e in entries if why_hidden(storage.base_name(e.address)) is None]
        pending += [entry.address for entry in reversed(shown) if entry.size is None]
        for entry in shown:
            if entry.size is not None and walk.is_image(entry.address):
                yield ListedFile(entry.address, entry.size)


def _content(address: str) -> bytes:
    try:
        if storage.is_remote(address):
            return storage.read(address)
        return Path(storage.local_path(address)).read_bytes()
    except OSError as error:
        reason = error.strerror or "it is gone"
        raise ImageError(f"Expected an image at {address}: {reason}.") from error
