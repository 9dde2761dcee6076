"""Activations cached on disk, for any number of processes at once, without a lock.

A *space* is everything that decides an activation except the image: network, weights, boundary,
preprocessing, view. Each computation adds a shard to its space; two processes that compute the same
image leave it there twice, which costs a little space and no correctness.

What cannot be read is computed again, what cannot be written stays in memory: a cache costs time,
never the fit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.cache_dir import CachedFiles, short_hash
from finetune.runtime import Runtime
from finetune.training.features.shards import ENDING, FORMAT, ROW, NewShard, Shard

DEFAULT_MAX_BYTES = 8 * 2**30
SENT_AT_ONCE = 256  # rows, from one process to another
Location = tuple[int, int]  # shard, row


class Activations(Dataset[Tensor]):
    """The activations of some images, in their order: ``len()``, ``[i]`` and :meth:`tensor`.

    Rows come from memory or from memory-mapped files; only what is asked for is read.
    """

    def __init__(self, shards: Sequence[np.ndarray], places: Sequence[Location]) -> None:
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


Compute = Callable[[list[int]], Iterator[np.ndarray]]


def cached_or_computed(
    store: FeatureStore | None, space: str, keys: Sequence[str], compute: Compute
) -> Activations:
    """The rows of the keys; what is not cached yet is computed, each key once, and cached.

    Of several processes each computes a share. All of them have to call.

    Args:
        store: where to look first and to cache; None caches in memory only.
        space: what decides a row beside its key.
        keys: of the images, in the order wanted; the same key may come twice.
        compute: from indexes into ``keys`` to batches of their rows, in that order.
    """
    shards, places = store.find(space, keys) if store else ([], {})
    first_of = {key: index for index, key in reversed(list(enumerate(keys)))}
    missing = sorted(index for key, index in first_of.items() if key not in places)
    runtime = Runtime()
    missed = runtime.gather(missing)
    nobody_has = sorted(set(missing).intersection(*missed))
    share = runtime.share(nobody_has)
    if share:
        places.update({keys[index]: (len(shards), row) for row, index in enumerate(share)})
        shards.append(_computed(store, space, keys, share, compute))
    unlike = len({shard.shape[1:] for shard in shards}) > 1
    if any(runtime.gather(unlike)):  # whatever the store has, it is not ours
        return cached_or_computed(None, space, keys, compute)
    if any(missed):
        _meet(store, space, keys, shards, places)
    return Activations(shards, [places[key] for key in keys])


def _computed(
    store: FeatureStore | None, space: str, keys: Sequence[str], wanted: list[int], compute: Compute
) -> np.ndarray:
    """The rows of those indexes, in a shard of the store or else in memory."""
    batches = compute(wanted)
    first = next(batches)
    batches = chain([first], batches)
    if store is not None and store.fits(len(wanted), first.shape[1:]):
        try:
            computed = store.keep(space, [keys[index] for index in wanted], batches)
        except OSError:  # what was written cannot be read back
            computed = list(compute(wanted))
    else:
        computed = list(batches)
    return computed[0] if len(computed) == 1 else np.concatenate(computed)


def _meet(
    store: FeatureStore | None,
    space: str,
    keys: Sequence[str],
    shards: list[np.ndarray],
    places: dict[str, Location],
) -> None:
    """Add what other processes have: found in the store where it is shared, else sent around."""
    runtime = Runtime()
    runtime.barrier()  # what each has computed is written now
    lacking = set(keys) - set(places)
    if store and lacking:
        others, found = store.find(space, sorted(lacking))
        if len({shard.shape[1:] for shard in (*shards, *others)}) == 1:
            places.update({key: (len(shards) + shard, row) for key, (shard, row) in found.items()})
            shards += others
    lacked = runtime.gather(set(keys) - set(places))
    wanted = sorted(set().union(*lacked))
    # Each is sent by the first process that has it.
    givers = {key: next(r for r, lacks in enumerate(lacked) if key not in lacks) for key in wanted}
    for start in range(0, len(wanted), SENT_AT_ONCE):
        asked = wanted[start : start + SENT_AT_ONCE]
        mine = [key for key in asked if givers[key] == runtime.rank]
        rows = {key: np.array(shards[places[key][0]][places[key][1]]) for key in mine}
        for told in runtime.gather(rows):
            new = [key for key in told if key not in places]
            if new:
                places.update({key: (len(shards), row) for row, key in enumerate(new)})
                shards.append(np.stack([told[key] for key in new]))


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
        self._shards: dict[Path, Shard] = {}

    @classmethod
    def wanted(cls, cache: str, cache_dir: str | os.PathLike[str] | None) -> FeatureStore | None:
        """The one that the settings of the data ask for; None where nothing is to be cached."""
        return None if cache == "off" else cls(cache_dir)

    def find(self, space: str, keys: Sequence[str]) -> tuple[list[np.ndarray], dict[str, Location]]:
        """Memory-mapped shards, and where the rows of those keys lie that are there and whole."""
        wanted = set(keys)
        shards: list[np.ndarray] = []
        places: dict[str, Location] = {}
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
        new = NewShard(self._files, space, keys)
        try:
            for batch in batches:
                new.add(np.ascontiguousarray(batch, dtype=ROW))
            rows = new.finish()
        except BaseException:
            new.remove()
            raise
        self._files.evict(self.max_bytes, keep=new.path.stem)
        # A map of a deleted file would keep its room on the disk.
        self._shards = {path: shard for path, shard in self._shards.items() if path.exists()}
        return rows

    def _shard(self, path: Path, space: str) -> Shard | None:
        """An open shard, or None for what is not a whole one of this space."""
        if path not in self._shards:
            with suppress(Exception):  # deleted or damaged, in whatever way: computed again
                self._shards[path] = Shard(self._files, path, space)
        return self._shards.get(path)
