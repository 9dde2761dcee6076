"""Files of decoded pictures that any number of processes write and read at once without a lock.

A data set has one folder of packs. A pack is a pair of files that only grow: ``.pixels``, the
``uint8 (H, W, C)`` pictures one after the other, read through a memory map, and ``.index``, one
record a picture, appended when its pixels are written. Every process writes packs of its own and
reads all; a picture that two of them decode at the same moment is merely there twice. Oldest packs
go when the limit is reached.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Identity of the file, hash of its content, offset, height, width, checksum, channels.
RECORD = struct.Struct("<16s16sQIIII")


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


class PackWriter:
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
        """Write ``uint8 (C, H, W)``; the record that says where it lies.

        Raises:
            OSError: the disk is full.
        """
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


class PackIndex:
    """Where each picture lies, over all packs of a folder; follows other processes' packs."""

    def __init__(self, folder: Path, in_chans: int) -> None:
        self.folder = folder
        self.in_chans = in_chans
        self._by_identity: dict[bytes, _Place] = {}
        self._by_content: dict[bytes, _Place] = {}
        self._read_bytes: dict[str, int] = {}
        self._maps: dict[str, np.ndarray] = {}

    def read(self, identity: bytes) -> Tensor | None:
        """The picture of a file, ``uint8 (C, H, W)``; None where no pack has it."""
        place = self._by_identity.get(identity)
        if place is None:
            self._refresh()
            place = self._by_identity.get(identity)
        return None if place is None else self._pixels(identity, place)

    def read_content(self, identity: bytes, content_key: bytes) -> Tensor | None:
        """The picture of a file by its content, and from now on by the file too."""
        place = self._by_content.get(content_key)
        if place is None:
            return None
        self._by_identity[identity] = place
        return self._pixels(identity, place)

    def add(self, pack: str, record: bytes, *, own: bool) -> None:
        """Know a picture; ``own`` if this process has written it, so that it needs no check."""
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
