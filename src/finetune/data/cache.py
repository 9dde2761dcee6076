"""Decoded images cached once and read many times: by later epochs, folds, members and runs.

In memory or, for all processes, in the files of :mod:`finetune.data.image_shards`. An image is
known by its path and :func:`~finetune.cache_dir.file_stamp`, and behind these by a hash of its
content: a renamed or copied file is found again, a changed one is decoded anew.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Literal

from PIL import __version__ as pillow_version
from torch import Tensor

from finetune.cache_dir import CachedFiles, file_stamp, short_hash
from finetune.data.decoding import ImageReader, file_content, unreadable
from finetune.data.image_shards import ShardIndex, ShardWriter
from finetune.spec.images import content_id

CacheMode = Literal["off", "memory", "disk", "auto"]

FORMAT = 2  # of the packs and of what decoding gives; another number forgets everything
LIMIT_BYTES = 10 * 2**30  # of all data sets' packs together
MEMORY_BYTES = 2 * 2**30  # of one process in mode "memory"
PACK_BYTES = 2**30  # a pack is closed at this size, so that eviction has small steps
AUTO_SHARE = 0.25  # of the free disk that mode "auto" takes at most


class CachedReader:
    """A reader whose decoded images are cached in packs, shared by all processes.

    Args:
        reader: decodes what is not there yet.
        cache_dir: what holds our folder; None for the platform's cache folder.
        group: 16 hexadecimal digits that name the data set and all that decides its pixels.
        limit_bytes: write no more once the packs of all groups have this size.
        pack_bytes: size at which a pack is closed.
    """

    def __init__(
        self,
        reader: ImageReader,
        cache_dir: str | os.PathLike[str] | None,
        group: str,
        *,
        limit_bytes: int = LIMIT_BYTES,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        self.reader = reader
        self.cache_dir = cache_dir
        self.group = group
        self.limit_bytes = limit_bytes
        self.pack_bytes = pack_bytes
        self._files = image_files(cache_dir)
        self._index = ShardIndex(self._files, group, reader.in_chans)
        self._writer: ShardWriter | None = None
        self._full = False
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> Tensor:
        """The image as ``uint8 (C, H, W)``, from the cache or decoded now; read it only."""
        identity = _digest(f"{os.path.abspath(path)}|{_stamp(path)}")
        with self._lock:
            pixels = self._index.read(identity)
        if pixels is not None:
            return pixels
        content = file_content(path)
        content_key = bytes.fromhex(content_id(content))
        with self._lock:
            pixels = self._index.read_content(content_key)
            if pixels is not None:
                self._write(identity, content_key, None)
                return pixels
        pixels = self.reader.decode(content, name=str(path))
        with self._lock:
            self._write(identity, content_key, pixels)
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: another process opens its own files."""
        return {
            "reader": self.reader,
            "cache_dir": self.cache_dir,
            "group": self.group,
            "limit_bytes": self.limit_bytes,
            "pack_bytes": self.pack_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _write(self, identity: bytes, content_key: bytes, pixels: Tensor | None) -> None:
        """Note what a file holds; ``pixels`` None where a pack has them."""
        if self._full:
            return
        writer = self._writer
        try:
            if writer is None or writer.process != os.getpid() or writer.size >= self.pack_bytes:
                if self._files.evict(self.limit_bytes, keep=self.group) >= self.limit_bytes:
                    self._full = True
                    return
                self._writer = writer = ShardWriter(self._files, self.group)
            record = writer.append(identity, content_key, pixels)
        except OSError:  # a full or read-only disk, or no permission: go on without
            self._full = True
            return
        self._index.add(writer.path, record, own=True)


class MemoryReader:
    """A reader that caches its decoded images in this process, up to a limit."""

    def __init__(self, reader: ImageReader, *, limit_bytes: int = MEMORY_BYTES) -> None:
        self.reader = reader
        self.limit_bytes = limit_bytes
        self._images: dict[Path, tuple[tuple[int, ...], Tensor]] = {}
        self._bytes = 0

    def __call__(self, path: Path) -> Tensor:
        """The image as ``uint8 (C, H, W)``; not to be changed in place."""
        stamp = _stamp(path)
        known, pixels = self._images.get(path, (None, None))
        if pixels is not None and known == stamp:
            return pixels
        if pixels is not None:  # the file has changed
            self._bytes -= self._images.pop(path)[1].numel()
        pixels = self.reader(path)
        if self._bytes + pixels.numel() <= self.limit_bytes:
            self._images[path] = (stamp, pixels)
            self._bytes += pixels.numel()
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Without the images: each process keeps its own."""
        return {**self.__dict__, "_images": {}, "_bytes": 0}


def caching_reader(
    reader: ImageReader,
    root: Path,
    *,
    mode: CacheMode,
    images: int,
    decode_seconds: float,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageReader | CachedReader | MemoryReader:
    """The reader that a mode asks for.

    ``auto`` caches images in memory where decoding all of them takes less than two seconds,
    else on disk where they fit into a quarter of what is free and into the limit, else not.

    Args:
        reader: how to decode.
        root: the folder of images, which names the cache.
        mode: off, memory, disk or auto.
        images: how many there are.
        decode_seconds: about how long decoding all of them takes.
        cache_dir: instead of the platform's cache folder.
    """
    if mode == "off" or reader.short_side is None:
        return reader
    if mode == "memory":
        return MemoryReader(reader)
    needed = images * estimated_bytes(reader)
    if mode == "auto":
        if decode_seconds < 2 and needed <= MEMORY_BYTES:
            return MemoryReader(reader)
        if needed > min(LIMIT_BYTES, AUTO_SHARE * image_files(cache_dir).free_bytes()):
            return reader
    decides = f"{os.path.realpath(root)}|{pillow_version}|{reader}"
    return CachedReader(reader, cache_dir, short_hash(decides))


def image_files(cache_dir: str | os.PathLike[str] | None) -> CachedFiles:
    """The packs of decoded images, of all data sets."""
    return CachedFiles(cache_dir, "images", FORMAT)


def estimated_bytes(reader: ImageReader) -> int:
    """Of one cached image with the usual aspect ratio of 4 to 3."""
    side = reader.short_side or 0
    return reader.in_chans * side * side * 4 // 3


def _digest(text: str) -> bytes:
    return bytes.fromhex(content_id(text.encode(errors="surrogateescape")))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        return file_stamp(path)
    except OSError as error:
        raise unreadable(path, error) from error
