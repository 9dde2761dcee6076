"""Decoded pictures kept once and read many times: by later epochs, folds, members and runs.

On disk a data set has one folder of packs. A pack is a pair of files that only grow: ``.pixels``,
the ``uint8 (H, W, C)`` pictures one after the other, read through a memory map, and ``.index``,
one record a picture, appended when its pixels are written. Every process writes packs of its own
and reads all, so any number of them may build a cache at once without a lock; a picture that two
of them decode at the same moment is merely there twice. Oldest packs go when the limit is reached.

A picture is known by path, size and time of change, and behind these by a hash of its content: a
renamed or copied file is found again, a changed one is decoded anew.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import __version__ as pillow_version
from torch import Tensor

from finetune.data.images import ImageReader, decode_bytes, hash_bytes
from finetune.data.locations import cache_folder, short_hash
from finetune.errors import ImageError

CacheMode = Literal["off", "memory", "disk", "auto"]

FORMAT = 1  # of the packs and of what decoding gives; another number forgets everything
LIMIT_BYTES = 10 * 2**30  # of all data sets' packs together
MEMORY_BYTES = 2 * 2**30  # of one process in mode "memory"
PACK_BYTES = 2**30  # a pack is closed at this size, so that eviction has small steps
AUTO_SHARE = 0.25  # of the free disk that mode "auto" takes at most

# Identity of the file, hash of its content, offset, height, width, checksum, channels.
RECORD = struct.Struct("<16s16sQIIII")


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
        self._index = _Index(folder, reader.in_chans)
        self._writer: _PackWriter | None = None
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
                self._writer = writer = _PackWriter(self.folder)
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


def evict(folder: Path, limit_bytes: int, *, keep: Path | None = None) -> int:
    """Delete least recently used packs until all under ``folder`` are below the limit.

    Those of the data set ``keep`` stay. Returns the bytes that remain.
    """
    packs = []
    for path in folder.glob("*/*.pixels"):
        with suppress(OSError):  # deleted by another process meanwhile
            packs.append((path.with_suffix(".index").stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in packs)
    for _, size, path in sorted(packs):
        if total < limit_bytes:
            break
        if path.parent != keep:
            with suppress(OSError):  # Windows keeps files that are open
                path.with_suffix(".index").unlink(missing_ok=True)
                path.unlink()
                total -= size
    return total


class _Place(NamedTuple):
    pack: str
    offset: int
    height: int
    width: int
    checksum: int | None  # None: verified, or written by this process


class _PackWriter:
    """Appends to a pack that no other process writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = str(folder / uuid.uuid4().hex)
        self.process = os.getpid()
        self.size = 0
        self._pixels: IO[bytes] = open(f"{self.path}.pixels", "xb", buffering=0)  # noqa: SIM115
        self._index: IO[bytes] = open(f"{self.path}.index", "xb", buffering=0)  # noqa: SIM115

    def __del__(self) -> None:
        for name in ("_pixels", "_index"):
            if name in self.__dict__:  # not if opening it failed
                getattr(self, name).close()

    def append(self, identity: bytes, content_key: bytes, pixels: Tensor) -> bytes:
        height, width = pixels.shape[1:]
        data = pixels.permute(1, 2, 0).contiguous().numpy().reshape(-1)
        offset = self.size
        written = self._pixels.write(data.data)
        self.size += written
        if written != len(data):
            raise OSError("the disk is full")
        record = RECORD.pack(
            identity, content_key, offset, height, width, _checksum(data), pixels.shape[0]
        )
        self._index.write(record)
        return record


class _Index:
    """Where each picture lies, over all packs of a folder; follows other processes' packs."""

    def __init__(self, folder: Path, in_chans: int) -> None:
        self.folder = folder
        self.in_chans = in_chans
        self._by_identity: dict[bytes, _Place] = {}
        self._by_content: dict[bytes, _Place] = {}
        self._read_bytes: dict[str, int] = {}
        self._maps: dict[str, np.ndarray] = {}

    def read(self, identity: bytes) -> Tensor | None:
        place = self._by_identity.get(identity)
        if place is None:
            self._refresh()
            place = self._by_identity.get(identity)
        return None if place is None else self._pixels(identity, place)

    def read_content(self, identity: bytes, content_key: bytes) -> Tensor | None:
        place = self._by_content.get(content_key)
        if place is None:
            return None
        self._by_identity[identity] = place
        return self._pixels(identity, place)

    def add(self, pack: str, record: bytes, *, own: bool) -> None:
        identity, content_key, offset, height, width, checksum, _ = RECORD.unpack(record)
        place = _Place(pack, offset, height, width, None if own else checksum)
        self._by_identity[identity] = place
        self._by_content[content_key] = place
        if own:
            self._read_bytes[pack] = self._read_bytes.get(pack, 0) + RECORD.size

    def _refresh(self) -> None:
        """Read what other processes have appended since."""
        try:
            entries = [entry for entry in os.scandir(self.folder) if entry.name.endswith(".index")]
        except OSError:  # no cache yet
            return
        for entry in entries:
            pack = entry.path.removesuffix(".index")
            start = self._read_bytes.get(pack, 0)
            with suppress(OSError):  # evicted meanwhile
                if entry.stat().st_size < start + RECORD.size:
                    continue
                with open(entry.path, "rb") as file:
                    file.seek(start)
                    data = file.read()
                os.utime(entry.path)  # recently used
                whole = len(data) - len(data) % RECORD.size
                for begin in range(0, whole, RECORD.size):
                    self.add(pack, data[begin : begin + RECORD.size], own=False)
                self._read_bytes[pack] = start + whole

    def _pixels(self, identity: bytes, place: _Place) -> Tensor | None:
        size = place.height * place.width * self.in_chans
        mapped = self._map(place.pack, place.offset + size)
        if mapped is None:
            self._forget(identity)
            return None
        data = mapped[place.offset : place.offset + size]
        if place.checksum is not None:
            if _checksum(data) != place.checksum:  # the machine stopped while it was written
                self._forget(identity)
                return None
            self._by_identity[identity] = place._replace(checksum=None)
        pixels = torch.from_numpy(data.reshape(place.height, place.width, self.in_chans))
        return pixels.permute(2, 0, 1)

    def _map(self, pack: str, end: int) -> np.ndarray | None:
        mapped = self._maps.get(pack)
        if mapped is None or len(mapped) < end:
            try:
                # Copy on write: nothing is copied to read, and whoever writes into a picture
                # changes neither the file nor what other processes see.
                mapped = np.memmap(f"{pack}.pixels", dtype=np.uint8, mode="c")
            except (OSError, ValueError):  # evicted, or still empty
                return None
            self._maps[pack] = mapped
        return mapped if len(mapped) >= end else None

    def _forget(self, identity: bytes) -> None:
        place = self._by_identity.pop(identity)
        for key, other in list(self._by_content.items()):
            if other[:2] == place[:2]:
                del self._by_content[key]


def _checksum(data: np.ndarray) -> int:
    """Of every 64th byte: what is missing after a crash are whole pages of the disk's cache."""
    return zlib.crc32(np.ascontiguousarray(data[::64]).data)


def _digest(text: str) -> bytes:
    return bytes.fromhex(hash_bytes(text.encode(errors="surrogateescape")))


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
