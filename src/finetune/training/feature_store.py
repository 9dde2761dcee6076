"""Activations kept on disk: append-only shards, safe between processes without any lock.

A *space* is everything that decides an activation except the picture: backbone weights, boundary,
preprocessing, view. Its folder holds shards, each a ``.npy`` array that is memory-mapped and a
``.keys`` file with one content hash a row. A shard is written beside, then renamed, so a reader
sees all of it or nothing; two processes that compute the same picture leave it there twice, which
costs a little space and no correctness.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.utils.data import Dataset

DEFAULT_MAX_BYTES = 8 * 2**30
_STALE_SECONDS = 24 * 3600
Place = tuple[int, int]  # shard, row


class Activations(Dataset[Tensor]):
    """The activations of some pictures, in their order: ``len()``, ``[i]`` and :meth:`tensor`.

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
        """Shape of one picture's activations, without the picture."""
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
    """The rows of the keys; what is not kept yet is computed, each key once, and kept.

    Args:
        store: where to look first and to keep; None keeps in memory only.
        space: what decides a row beside its key.
        keys: of the pictures, in the order wanted; the same key may come twice.
        compute: from indexes into ``keys`` to batches of their rows, in that order.
    """
    shards, places = store.find(space) if store else ([], {})
    first_of = {key: index for index, key in reversed(list(enumerate(keys)))}
    missing = sorted(index for key, index in first_of.items() if key not in places)
    if missing:
        batches = compute(missing)
        first = next(batches)
        batches = chain([first], batches)
        missing_keys = [keys[index] for index in missing]
        if store is not None and store.fits(len(missing), first.shape[1:]):
            store.write(space, missing_keys, batches)
            shards, places = store.find(space)
        else:
            places.update({key: (len(shards), row) for row, key in enumerate(missing_keys)})
            shards.append(np.concatenate(list(batches)))
    return Activations(shards, [places[key] for key in keys])


class FeatureStore:
    """Activations by space and content hash under one folder, bounded in bytes.

    Args:
        folder: by default ``features`` in the platform's cache folder of this project.
        max_bytes: beyond it, the spaces that were not used for the longest time are deleted.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder or user_cache_path("finetune", appauthor=False) / "features"
        self.max_bytes = max_bytes

    def find(self, space: str) -> tuple[list[np.ndarray], dict[str, Place]]:
        """The shards of a space, memory-mapped, and where each content hash lies in them."""
        shards: list[np.ndarray] = []
        places: dict[str, Place] = {}
        for path in sorted(self._space(space).glob("*.npy")):
            try:
                keys = path.with_suffix(".keys").read_text(encoding="ascii").split()
                shard = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):
                continue  # deleted or damaged meanwhile: what was in it is computed again
            if len(keys) == len(shard):
                places.update({key: (len(shards), row) for row, key in enumerate(keys)})
                shards.append(shard)
        if shards:
            with suppress(OSError):  # a cache that only others may write
                os.utime(self._space(space))
        return shards, places

    def fits(self, count: int, shape: Sequence[int]) -> bool:
        """Whether so many activations of this shape stay within the bound and the free space."""
        needed = count * int(np.prod(shape)) * 4
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError:  # no place to write: a cache costs time, never the fit
            return False
        return needed <= min(self.max_bytes, free // 2) and os.access(self.folder, os.W_OK)

    def write(self, space: str, keys: Sequence[str], batches: Iterator[np.ndarray]) -> None:
        """Publish the rows of ``batches``, in the order of ``keys``, once they are complete."""
        folder = self._space(space)
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        beside = folder / f".{name}.npy"
        shard: np.ndarray | None = None
        row = 0
        try:
            for batch in batches:
                if shard is None:
                    shape = (len(keys), *batch.shape[1:])
                    shard = np.lib.format.open_memmap(beside, "w+", np.float32, shape)
                shard[row : row + len(batch)] = batch
                row += len(batch)
            if shard is None or row != len(keys):
                raise ValueError(f"Expected {len(keys)} rows, found {row}.")
            shard.flush()  # type: ignore[attr-defined]
            (folder / f"{name}.keys").write_text("\n".join(keys), encoding="ascii")
            beside.replace(folder / f"{name}.npy")
        finally:
            beside.unlink(missing_ok=True)
        self._evict(keep=folder)

    def _space(self, space: str) -> Path:
        return self.folder / space

    def _evict(self, keep: Path) -> None:
        """Delete the spaces longest unused until the bound holds; maps already open stay valid."""
        folders = [path for path in self.folder.iterdir() if path.is_dir()]
        for folder in folders:
            for left_over in folder.glob(".*.npy"):  # of processes that were killed
                if time.time() - _modified(left_over) > _STALE_SECONDS:
                    left_over.unlink(missing_ok=True)
        total = sum(_size(folder) for folder in folders)
        for folder in sorted(folders, key=_modified):
            if total <= self.max_bytes:
                return
            if folder != keep:
                total -= _size(folder)
                shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(_stat(path)[0] for path in folder.glob("*"))


def _modified(path: Path) -> float:
    return _stat(path)[1]


def _stat(path: Path) -> tuple[int, float]:
    try:
        found = path.stat()
    except OSError:  # another process deleted it meanwhile
        return 0, 0.0
    return found.st_size, found.st_mtime
