"""Files of decoded images that any number of processes write and read at once without a lock.

A pack is a pair of files that only grow: ``.pixels``, the ``uint8 (H, W, C)`` images one after the
other, read through a memory map, and ``.index``, one record an image, appended when its pixels are
written. Every process writes packs of its own and reads all of its data set's; an image that two of
them decode at the same moment is merely there twice.

A file is known by an identity, behind it by its content: records say which content a file has, and
where that content's pixels lie. Each record has a checksum, and another one over all of its pixels,
compared when a process first reads them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.cache_dir import HEADER_BYTES, CachedFiles, write_all

# Identity of the file, hash of its content, offset, height, width, channels. Height 0: the pixels
# lie in another pack.
WHERE = struct.Struct("<16s16sQIII")
SUMS = struct.Struct("<II")  # checksums of these and the pixels, of all before
RECORD_BYTES = WHERE.size + SUMS.size


class _Record(NamedTuple):
    pack: Path
    offset: int
    shape: tuple[int, int, int]  # height, width, channels
    checksums: tuple[int, int] | None  # to begin and to end with; None: compared, or our own


class ShardWriter:
    """Appends to a pack that no other process writes.

    Raises:
        OSError: no room, or no permission.
    """

    def __init__(self, files: CachedFiles, group: str) -> None:
        self.path = files.new_path(group, ".pixels")
        self.process = os.getpid()
        self.size = HEADER_BYTES
        self._pixels = files.create(self.path)
        self._index = files.create(self.path.with_suffix(".index"))

    def __del__(self) -> None:
        for name in ("_pixels", "_index"):
            if name in self.__dict__:  # not if opening it failed
                getattr(self, name).close()

    def append(self, identity: bytes, content_key: bytes, pixels: Tensor | None) -> bytes:
        """Write a file's ``uint8 (C, H, W)``; None where its content lies in a pack already.

        Returns the record of it.

        Raises:
            OSError: the disk is full.
        """
        data = np.empty((0, 0, 0), np.uint8)
        if pixels is not None:
            data = pixels.permute(1, 2, 0).contiguous().numpy()
        where = WHERE.pack(identity, content_key, self.size, *data.shape)
        record = _sealed(where, zlib.crc32(data.data, zlib.crc32(where)))
        write_all(self._pixels, data.data)
        self.size += data.nbytes
        write_all(self._index, record)
        return record


class ShardIndex:
    """Where each image lies, over all packs of a group; follows other processes' packs."""

    def __init__(self, files: CachedFiles, group: str, in_chans: int) -> None:
        self._files = files
        self._group = group
        self._in_chans = in_chans
        self._contents: dict[bytes, bytes] = {}  # by identity
        self._places: dict[bytes, list[_Record]] = defaultdict(list)  # by content
        self._read_bytes: dict[Path, int] = {}
        self._maps: dict[Path, np.ndarray] = {}

    def read(self, identity: bytes) -> Tensor | None:
        """The image of a file, ``uint8 (C, H, W)``; None where no pack has it."""
        if identity not in self._contents:
            self._refresh()
        content_key = self._contents.get(identity)
        return None if content_key is None else self.read_content(content_key)

    def read_content(self, content_key: bytes) -> Tensor | None:
        """The image of a content; of several copies, the first whole one."""
        places = self._places[content_key]
        while places:
            pixels = self._pixels(places[0])
            if pixels is not None:
                places[0] = places[0]._replace(checksums=None)
                return pixels
            del places[0]
        return None

    def add(self, pack: Path, record: bytes, *, own: bool) -> None:
        """Know a record; ``own`` if this process has written it, so that it needs no check."""
        where, (checksum, _) = record[: WHERE.size], SUMS.unpack(record[WHERE.size :])
        if _sealed(where, checksum) != record:  # the machine stopped, or somebody changed it
            return
        identity, content_key, offset, *shape = WHERE.unpack(where)
        self._contents[identity] = content_key
        if shape[0]:
            checksums = None if own else (zlib.crc32(where), checksum)
            self._places[content_key].append(_Record(pack, offset, tuple(shape), checksums))
        if own:
            self._read_bytes[pack] = self._read_bytes.get(pack, HEADER_BYTES) + RECORD_BYTES

    def _refresh(self) -> None:
        """Read what other processes have appended since."""
        for path in self._files.listed(self._group, ".index"):
            pack = path.with_suffix(".pixels")
            start = self._read_bytes.get(pack, HEADER_BYTES)
            with suppress(OSError):  # evicted meanwhile, or not ours
                if path.stat().st_size < start + RECORD_BYTES:
                    continue
                with self._files.open(path) as file:
                    file.seek(start)
                    data = file.read()
                self._files.used(path)
                whole = len(data) - len(data) % RECORD_BYTES
                for begin in range(0, whole, RECORD_BYTES):
                    self.add(pack, data[begin : begin + RECORD_BYTES], own=False)
                self._read_bytes[pack] = start + whole

    def _pixels(self, place: _Record) -> Tensor | None:
        height, width, channels = place.shape
        end = place.offset + height * width * channels
        mapped = self._map(place.pack, end)
        if mapped is None or channels != self._in_chans:
            return None
        data = mapped[place.offset : end]
        if place.checksums is not None:
            begin, expected = place.checksums
            if zlib.crc32(data.data, begin) != expected:
                return None
        return torch.from_numpy(data.reshape(place.shape)).permute(2, 0, 1)

    def _map(self, pack: Path, end: int) -> np.ndarray | None:
        mapped = self._maps.get(pack)
        if mapped is None or len(mapped) < end:
            try:
                with self._files.open(pack) as file:
                    # Copy on write: nothing is copied to read, and whoever writes into an image
                    # changes neither the file nor what other processes see.
                    mapped = np.asarray(np.memmap(file, np.uint8, "c"))
            except OSError:  # evicted, or not ours
                return None
            self._maps[pack] = mapped
        return mapped if len(mapped) >= end else None


def _sealed(where: bytes, checksum: int) -> bytes:
    fields = where + checksum.to_bytes(4, "little")
    return fields + zlib.crc32(fields).to_bytes(4, "little")
