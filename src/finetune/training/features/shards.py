"""Files of activations: our header, the rows, and a footer that says what they are.

A shard is written once, from start to end, and the footer is its last part, so that a reader takes
a whole shard or none. Nothing that is read is believed: the footer has a checksum, and each row one
over its key, its shape and all of its bytes, compared once a process.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune.cache_dir import HEADER_BYTES, CachedFiles, short_hash, write_all

FORMAT = 2
ENDING = ".features"
ROW = np.dtype("<f4")
END = struct.Struct("<QI")  # bytes of the footer, its checksum


class Shard:
    """A whole shard: its rows, memory-mapped, and which key's each of them is.

    Raises:
        OSError: it is not there, or not ours.
        ValueError: it is not whole, or of another space.
    """

    def __init__(self, files: CachedFiles, path: Path, space: str) -> None:
        with files.open(path) as file:
            described, end = _read_footer(file)
            shape, keys = tuple(described["shape"]), described["keys"]
            self._sums: list[int] = described["sums"]
            expected = (space, HEADER_BYTES + math.prod(shape) * ROW.itemsize, shape[0], shape[0])
            if (described["space"], end, len(keys), len(self._sums)) != expected:
                raise ValueError(f"Expected activations of {space}, found others in {path}.")
            self.rows = np.asarray(np.memmap(file, ROW, "r", HEADER_BYTES, shape))
        self.keys: dict[str, int] = {key: row for row, key in enumerate(keys)}
        self._compared: dict[str, bool] = {}

    def is_whole(self, key: str) -> bool:
        """Whether a row is, byte for byte, what was written for its key."""
        if key not in self._compared:
            row = self.keys[key]
            self._compared[key] = _checksum(key, self.rows[row]) == self._sums[row]
        return self._compared[key]


class NewShard:
    """Rows on their way to a file, or to memory from the moment that the disk takes no more."""

    def __init__(self, files: CachedFiles, space: str, keys: Sequence[str]) -> None:
        self.path = files.new_path(short_hash(space), ENDING)
        self._file: BinaryIO | None = None
        self._space = space
        self._keys = keys
        self._shape: tuple[int, ...] = ()
        self._sums: list[int] = []
        self._memory: list[np.ndarray] = []
        with suppress(OSError):  # a full or read-only disk, or no permission: memory it is
            self._file = files.create(self.path)

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows, float32 ``(n, *shape)``."""
        done = len(self._sums)
        keys = self._keys[done : done + len(rows)]
        if len(keys) != len(rows):
            raise ValueError(f"Expected {len(self._keys)} rows, found more.")
        try:
            if self._file is not None:
                write_all(self._file, rows.data)
        except OSError:
            self._to_memory()
        if self._file is None:
            self._memory.append(rows)
        self._shape = rows.shape[1:]
        self._sums += map(_checksum, keys, rows)

    def finish(self) -> list[np.ndarray]:
        """Publish the shard; its rows, mapped only now that the disk holds all of them."""
        if len(self._sums) != len(self._keys):
            raise ValueError(f"Expected {len(self._keys)} rows, found {len(self._sums)}.")
        if self._file is None:
            return self._memory
        shape = (len(self._keys), *self._shape)
        described = {
            "space": self._space,
            "shape": shape,
            "keys": list(self._keys),
            "sums": self._sums,
        }
        footer = json.dumps(described).encode()
        try:
            write_all(self._file, footer + END.pack(len(footer), zlib.crc32(footer)))
            os.fsync(self._file.fileno())
            rows = np.asarray(np.memmap(self._file, ROW, "r", HEADER_BYTES, shape))
        except OSError:
            self._to_memory()
            return self._memory
        self._file.close()
        return [rows]

    def remove(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.close()
            self._file = None
            with suppress(OSError):  # without its footer nobody reads it; it is evicted in its turn
                self.path.unlink()

    def _to_memory(self) -> None:
        """Read back what the disk took, and give its room back.

        Raises:
            OSError: the disk has failed altogether.
        """
        assert self._file is not None
        count = len(self._sums)
        self._file.seek(HEADER_BYTES)
        found = np.fromfile(self._file, ROW, count * math.prod(self._shape))
        self.remove()
        if found.size != count * math.prod(self._shape):
            raise OSError(f"Expected to read {count} activations back, found {found.size}.")
        rows = found.reshape(count, *self._shape)
        if [*map(_checksum, self._keys, rows)] != self._sums:
            raise OSError("Expected to read activations back, found others.")
        self._memory = [rows] if count else []


def _read_footer(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """What a shard says of its rows, and where they end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END.size))
    length, checksum = END.unpack(file.read(END.size))
    start = size - END.size - length
    if start < HEADER_BYTES:
        raise ValueError("Expected the footer of a shard.")
    file.seek(start)
    footer = file.read(length)
    if zlib.crc32(footer) != checksum:
        raise ValueError("Expected the footer of a shard as it was written.")
    return json.loads(footer), start


def _checksum(key: str, row: np.ndarray) -> int:
    """Of a row with its shape, bound to its key."""
    return zlib.crc32(np.ascontiguousarray(row).data, zlib.crc32(f"{key} {row.shape}".encode()))
