"""Images that are there more than once: byte for byte, or nearly the same to the eye."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from finetune.data.decoding import ImageReader
from finetune.data.inspection import Inspection
from finetune.errors import ImageError

# Perceptual hashes at most this many of 64 bits apart are looked at more closely: with 8 bands of
# 8 bits, two hashes at most 7 bits apart agree in at least one band, so none is missed.
NEAR_BITS = 7
BANDS = 8
# Two such images are near duplicates if their small grey copies correlate at least this well.
NEAR_CORRELATION = 0.95
SMALL = 24  # side of these copies in pixels

_BITS_OF_BYTE = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


def exact_duplicates(inspections: Sequence[Inspection]) -> list[list[int]]:
    """Groups of indexes with equal contents, each of at least two, in order."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, inspection in enumerate(inspections):
        if inspection.content_hash and inspection.size:
            groups[inspection.content_hash].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(
    inspections: Sequence[Inspection], read_small: Callable[[Path], np.ndarray] | None = None
) -> list[tuple[int, int]]:
    """Pairs of indexes of images that look the same but differ in their bytes.

    Perceptual hashes (of ``imagehash``, to be asked for in the inspection) find candidates; small
    copies, compared pixel by pixel, confirm them. Copies in another format or size, with another
    quality or a slightly changed light are found; mirrored, turned or strongly cropped ones not.

    Each content counts once, by its first index, and of images that look the same only as many
    pairs are given as connect them: memory is proportional to the number of images.
    """
    first_of: dict[str, int] = {}
    for index, inspection in enumerate(inspections):
        if inspection.perceptual_hash:
            first_of.setdefault(inspection.content_hash or str(inspection.path), index)
    of_hash: dict[str, list[int]] = defaultdict(list)
    for index in first_of.values():
        of_hash[inspections[index].perceptual_hash].append(index)
    alike = _Alike(lambda index: (read_small or small_copy)(inspections[index].path))
    hashes = list(of_hash)
    for own, near in _close_hashes(hashes):
        alike.add(of_hash[hashes[own]])
        for other in near:
            alike.connect(of_hash[hashes[own]], of_hash[hashes[other]])
    return sorted(alike.pairs)


class _Alike:
    """Connects images whose small copies agree, and keeps the pairs that connect."""

    def __init__(self, small: Callable[[int], np.ndarray]) -> None:
        self.pairs: list[tuple[int, int]] = []
        self._small = small
        self._rows: dict[int, np.ndarray | None] = {}
        self._sets = DisjointSets()

    def add(self, equal: Sequence[int]) -> None:
        """Compare images of one hash: each with those that none before it was like."""
        leaders: list[int] = []
        for index in equal if len(equal) > 1 else ():
            if self._row(index) is None:
                continue
            if leaders and (found := self._agreeing(index, leaders)):
                self._join(found[0], index)
            else:
                leaders.append(index)

    def connect(self, some: Sequence[int], others: Sequence[int]) -> None:
        """Compare images of two hashes, as far as these are not connected yet."""
        for index in some:
            apart = [each for each in others if not self._sets.together(index, each)]
            for other in self._agreeing(index, apart):
                self._join(index, other)

    def _join(self, one: int, other: int) -> None:
        if self._sets.join(one, other):
            self.pairs.append((min(one, other), max(one, other)))

    def _agreeing(self, index: int, others: Sequence[int]) -> list[int]:
        own = self._row(index)
        rows = [(each, row) for each in others if (row := self._row(each)) is not None]
        if own is None or not rows:
            return []
        correlations = np.stack([row for _, row in rows]) @ own
        return [rows[position][0] for position in np.flatnonzero(correlations >= NEAR_CORRELATION)]

    def _row(self, index: int) -> np.ndarray | None:
        """The small copy around its mean with length 1; None where it is of one grey."""
        if index not in self._rows:
            values = self._small(index).astype(np.float32).ravel()
            values -= values.mean()
            norm = float(np.sqrt((values**2).sum()))
            self._rows[index] = values / norm if norm > 1e-3 else None
        return self._rows[index]


def small_copy(path: Path) -> np.ndarray:
    """An image as ``float (24, 24)`` grey, its aspect ratio forgotten."""
    from PIL import Image

    try:
        pixels = ImageReader(1, 2 * SMALL)(path)[0].numpy()
    except ImageError:  # changed since it was inspected
        return np.zeros((SMALL, SMALL))
    return np.asarray(Image.fromarray(pixels).resize((SMALL, SMALL)), dtype=float)


class DisjointSets:
    """Which numbers are connected, pair by pair."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, index: int) -> int:
        """The smallest number that this one is connected with."""
        self._parent.setdefault(index, index)
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def together(self, one: int, other: int) -> bool:
        """Whether two are connected already."""
        return self.find(one) == self.find(other)

    def join(self, one: int, other: int) -> bool:
        """Connect two; False where they were already."""
        small, large = sorted((self.find(one), self.find(other)))
        self._parent[large] = small
        return small != large

    def groups(self) -> list[list[int]]:
        """The connected sets of all numbers seen so far, each sorted."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index in sorted(self._parent):
            groups[self.find(index)].append(index)
        return list(groups.values())


def join(pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Connect indexes that share a pair (or a longer group), and give the connected sets."""
    sets = DisjointSets()
    for first, *others in pairs:
        sets.find(first)
        for other in others:
            sets.join(first, other)
    return sets.groups()


def _close_hashes(hashes: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """Of each of these different hashes, those after it that are at most ``NEAR_BITS`` apart."""
    values = np.array([int(text, 16) for text in hashes], dtype=np.uint64)
    bands = [(values >> np.uint64(8 * band)) & np.uint64(255) for band in range(BANDS)]
    buckets = [dict(_buckets(keys)) for keys in bands]
    for index, value in enumerate(values):
        found: set[int] = set()
        for keys, bucket in zip(bands, buckets, strict=True):
            members = bucket[int(keys[index])]
            later = members[np.searchsorted(members, index, side="right") :]
            found.update(later[_bits(values[later] ^ value) <= NEAR_BITS].tolist())
        yield index, sorted(found)


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits are set in each of ``uint64 (N,)``; NumPy itself counts them from 2.0 on."""
    return _BITS_OF_BYTE[values.view(np.uint8)].reshape(-1, 8).sum(axis=1)


def _buckets(keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each key with the positions that have it, sorted."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    for positions in np.split(order, borders) if len(keys) else ():
        yield int(keys[positions[0]]), positions
