"""Decoded pictures kept once and read many times: by later epochs, folds, members and runs.

In memory or, for all processes, in the files of :mod:`finetune.data.packs`. A picture is known by
path, size and time of change, and behind these by a hash of its content: a renamed or copied file
is found again, a changed one is decoded anew.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any, Literal

from PIL import __version__ as pillow_version
from torch import Tensor

from finetune.data.images import ImageReader, decode_bytes, hash_bytes
from finetune.data.locations import cache_folder, short_hash
from finetune.data.packs import PackIndex, PackWriter, evict
from finetune.errors import ImageError

CacheMode = Literal["off", "memory", "disk", "auto"]

FORMAT = 1  # of the packs and of what decoding gives; another number forgets everything
LIMIT_BYTES = 10 * 2**30  # of all data sets' packs together
MEMORY_BYTES = 2 * 2**30  # of one process in mode "memory"
PACK_BYTES = 2**30  # a pack is closed at this size, so that eviction has small steps
AUTO_SHARE = 0.25  # of the free disk that mode "auto" takes at most


class CachedReader:
    """A reader whose decoded pictures are kept in a folder, shared by all processes.

    Args:
        reader: decodes what is not there yet.
        folder: of the packs; made when the first picture is written.
        limit_bytes: write no more once all packs of the folder's parent have this size.
        pack_bytes: size at which a pack is closed.
    """

    def __init__(
        self,
        reader: ImageReader,
        folder: Path,
        *,
        limit_bytes: int = LIMIT_BYTES,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        self.reader = reader
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.pack_bytes = pack_bytes
        self._index = PackIndex(folder, reader.in_chans)
        self._writer: PackWriter | None = None
        self._full = False
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> Tensor:
        """The picture as ``uint8 (C, H, W)``, from the cache or decoded now; read it only."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise ImageError(f"Expected a picture at {path}: {error.strerror}.") from error
        identity = _digest(f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}")
        with self._lock:
            pixels = self._index.read(identity)
        if pixels is not None:
            return pixels
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"Expected a picture at {path}: {error.strerror}.") from error
        content_key = bytes.fromhex(hash_bytes(content))
        with self._lock:
            pixels = self._index.read_content(identity, content_key)
        if pixels is None:
            pixels = decode_bytes(
                content,
                name=str(path),
                in_chans=self.reader.in_chans,
                short_side=self.reader.short_side,
                max_pixels=self.reader.max_pixels,
                long_side=self.reader.long_side,
            )
            with self._lock:
                self._write(identity, content_key, pixels)
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: another process opens its own files."""
        return {
            "reader": self.reader,
            "folder": self.folder,
            "limit_bytes": self.limit_bytes,
            "pack_bytes": self.pack_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        reader, folder = state.pop("reader"), state.pop("folder")
        self.__init__(reader, folder, **state)  # type: ignore[misc]

    def _write(self, identity: bytes, content_key: bytes, pixels: Tensor) -> None:
        if self._full:
            return
        writer = self._writer
        if writer is None or writer.process != os.getpid() or writer.size >= self.pack_bytes:
            if evict(self.folder.parent, self.limit_bytes, keep=self.folder) >= self.limit_bytes:
                self._full = True
                return
            try:
                self._writer = writer = PackWriter(self.folder)
            except OSError:  # a read-only or full disk: go on without
                self._full = True
                return
        try:
            record = writer.append(identity, content_key, pixels)
        except OSError:
            self._full = True
            return
        self._index.add(writer.path, record, own=True)


class MemoryReader:
    """A reader that keeps its decoded pictures in this process, up to a limit."""

    def __init__(self, reader: ImageReader, *, limit_bytes: int = MEMORY_BYTES) -> None:
        self.reader = reader
        self.limit_bytes = limit_bytes
        self._pictures: dict[Path, Tensor] = {}
        self._bytes = 0

    def __call__(self, path: Path) -> Tensor:
        """The picture as ``uint8 (C, H, W)``; not to be changed in place."""
        pixels = self._pictures.get(path)
        if pixels is None:
            pixels = self.reader(path)
            if self._bytes + pixels.numel() <= self.limit_bytes:
                self._pictures[path] = pixels
                self._bytes += pixels.numel()
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Without the pictures: each process keeps its own."""
        return {**self.__dict__, "_pictures": {}, "_bytes": 0}


def caching_reader(
    reader: ImageReader,
    root: Path,
    *,
    mode: CacheMode,
    pictures: int,
    decode_seconds: float,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageReader | CachedReader | MemoryReader:
    """The reader that a mode asks for.

    ``auto`` keeps pictures in memory where decoding all of them takes less than two seconds,
    else on disk where they fit into a quarter of what is free and into the limit, else not.

    Args:
        reader: how to decode.
        root: the folder of pictures, which names the cache.
        mode: off, memory, disk or auto.
        pictures: how many there are.
        decode_seconds: about how long decoding all of them takes.
        cache_dir: instead of the platform's cache folder.
    """
    if mode == "off" or reader.short_side is None:
        return reader
    if mode == "memory":
        return MemoryReader(reader)
    kept = cache_folder(cache_dir) / "pictures"
    needed = pictures * estimated_bytes(reader)
    if mode == "auto":
        if decode_seconds < 2 and needed <= MEMORY_BYTES:
            return MemoryReader(reader)
        if needed > min(LIMIT_BYTES, AUTO_SHARE * _free_bytes(kept)):
            return reader
    settings = f"{FORMAT}|{pillow_version}|{reader}"
    return CachedReader(reader, kept / short_hash(f"{os.path.realpath(root)}|{settings}"))


def estimated_bytes(reader: ImageReader) -> int:
    """Of one kept picture with the usual aspect ratio of 4 to 3."""
    side = reader.short_side or 0
    return reader.in_chans * side * side * 4 // 3


def _digest(text: str) -> bytes:
    return bytes.fromhex(hash_bytes(text.encode(errors="surrogateescape")))


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
