"""Activations kept on disk: shards that any number of processes write and read without a lock.

A *space* is everything that decides an activation except the image: network, weights, boundary,
preprocessing, view. A shard is one file of some images' activations: our header, the rows, and a
footer that says what they are. It is written once, from start to end, and the footer is its last
part, so that a reader takes a whole shard or none; two processes that compute the same image leave
it there twice, which costs a little space and no correctness.

Nothing that is read is believed: the footer has a checksum, and each row one over its key and all
of its bytes, compared once a process. What differs is computed again. What cannot be written stays
in memory: a cache costs time, never the fit.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.cache_dir import HEADER_BYTES, CachedFiles, short_hash, write_all

DEFAULT_MAX_BYTES = 8 * 2**30
FORMAT = 2
ENDING = ".features"
ROW = np.dtype("<f4")
END = struct.Struct("<QI")  # bytes of the footer, its checksum
Place = tuple[int, int]  # shard, row


class Activations(Dataset[Tensor]):
    """The activations of some images, in their order: ``len()``, ``[i]`` and :meth:`tensor`.

    Rows come from memory or from memory-mapped files; only what is asked for is read.
    """

    def __init__(self, shards: Sequence[np.ndarray], places: Sequence[Place]) -> None:
        self._shards = list(shards)
        self._places = list(places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:
        shard, row = self._places[index]
        return torch.from_numpy(np.array(self._shards[shard][row], dtype=np.float32))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's activations, without the image."""
        return tuple(self._shards[0].shape[1:])

    def tensor(self) -> Tensor:
        """All of them in memory, float32 ``(N, *shape)``."""
        stacked = np.empty((len(self), *self.shape), dtype=np.float32)
        for index, (shard, row) in enumerate(self._places):
            stacked[index] = self._shards[shard][row]
        return torch.from_numpy(stacked)


def kept_or_computed(
    store: FeatureStore | None,
    space: str,
    keys: Sequence[str],
    compute: Callable[[list[int]], Iterator[np.ndarray]],
) -> Activations:
    """The rows of the keys; what is not cached yet is computed, each key once, and cached.

    Args:
        store: where to look first and to keep; None keeps in memory only.
        space: what decides a row beside its key.
        keys: of the images, in the order wanted; the same key may come twice.
        compute: from indexes into ``keys`` to batches of their rows, in that order.
    """
    shards, places = store.find(space, keys) if store else ([], {})
    first_of = {key: index for index, key in reversed(list(enumerate(keys)))}
    missing = sorted(index for key, index in first_of.items() if key not in places)
    if missing:
        batches = compute(missing)
        first = next(batches)
        if shards and first.shape[1:] != shards[0].shape[1:]:  # whatever that is, it is not ours
            return kept_or_computed(None, space, keys, compute)
        batches = chain([first], batches)
        missing_keys = [keys[index] for index in missing]
        if store is not None and store.fits(len(missing), first.shape[1:]):
            try:
                computed = store.keep(space, missing_keys, batches)
            except OSError:  # what was written cannot be read back
                computed = list(compute(missing))
        else:
            computed = list(batches)
        rows = computed[0] if len(computed) == 1 else np.concatenate(computed)
        places.update({key: (len(shards), row) for row, key in enumerate(missing_keys)})
        shards.append(rows)
    return Activations(shards, [places[key] for key in keys])


class FeatureStore:
    """Activations by space and content hash in a folder of ours, bounded in bytes.

    Args:
        cache_dir: what holds our folder; by default the platform's cache folder.
        max_bytes: beyond it, the shards that were not used for the longest time are deleted.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._files = CachedFiles(cache_dir, "features", FORMAT)
        self.max_bytes = max_bytes
        self._shards: dict[Path, _Shard] = {}

    def find(self, space: str, keys: Sequence[str]) -> tuple[list[np.ndarray], dict[str, Place]]:
        """Memory-mapped shards, and where the rows of those keys lie that are there and whole."""
        wanted = set(keys)
        shards: list[np.ndarray] = []
        places: dict[str, Place] = {}
        for path in self._files.listed(short_hash(space), ENDING):
            shard = self._shard(path, space)
            if shard is None or (shards and shard.rows.shape[1:] != shards[0].shape[1:]):
                continue
            here = [key for key in shard.keys if key in wanted and key not in places]
            whole = {key: (len(shards), shard.keys[key]) for key in here if shard.is_whole(key)}
            if whole:
                places.update(whole)
                shards.append(shard.rows)
                self._files.used(path)
        return shards, places

    def fits(self, count: int, shape: Sequence[int]) -> bool:
        """Whether so many activations of this shape stay within the bound and the free space."""
        needed = count * math.prod(shape) * ROW.itemsize
        return needed <= min(self.max_bytes, self._files.free_bytes() // 2)

    def keep(
        self, space: str, keys: Sequence[str], batches: Iterator[np.ndarray]
    ) -> list[np.ndarray]:
        """The rows of ``batches``, in the order of ``keys``, in a new shard or else in memory.

        Raises:
            OSError: the disk failed, and what it took cannot be read back either.
            ValueError: there are more or fewer rows than keys.
        """
        new = _NewShard(self._files, space, keys)
        try:
            for batch in batches:
                new.add(np.ascontiguousarray(batch, dtype=ROW))
            rows = new.finish()
        except BaseException:
            new.remove()
            raise
        self._files.evict(self.max_bytes, keep=new.path.stem)
        return rows

    def _shard(self, path: Path, space: str) -> _Shard | None:
        """An open shard, or None for what is not a whole one of this space."""
        if path not in self._shards:
            with suppress(Exception):  # deleted or damaged, in whatever way: computed again
                self._shards[path] = _Shard(self._files, path, space)
        return self._shards.get(path)


class _Shard:
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


class _NewShard:
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
            self.path.unlink(missing_ok=True)

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
