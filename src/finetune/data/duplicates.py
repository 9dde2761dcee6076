"""Pictures that are there more than once: byte for byte, or nearly the same to the eye."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from finetune.data.images import decode_image
from finetune.data.inspection import Inspection
from finetune.errors import ImageError

# Perceptual hashes at most this many of 64 bits apart are looked at more closely: with 8 bands of
# 8 bits, two hashes at most 7 bits apart agree in at least one band, so none is missed.
NEAR_BITS = 7
BANDS = 8
# Two such pictures are near duplicates if their small grey copies correlate at least this well.
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
    """Pairs of indexes of pictures that look the same but differ in their bytes.

    Perceptual hashes (of ``imagehash``, to be asked for in the inspection) find candidates; small
    copies, compared pixel by pixel, confirm them. Copies in another format or size, with another
    quality or a slightly changed light are found; mirrored, turned or strongly cropped ones not.
    """
    small_of: dict[int, np.ndarray] = {}

    def small(index: int) -> np.ndarray:
        if index not in small_of:
            small_of[index] = (read_small or small_copy)(inspections[index].path)
        return small_of[index]

    return [
        (one, other)
        for one, other in _close_hashes([each.perceptual_hash for each in inspections])
        if inspections[one].content_hash != inspections[other].content_hash
        and _correlation(small(one), small(other)) >= NEAR_CORRELATION
    ]


def small_copy(path: Path) -> np.ndarray:
    """A picture as ``float (24, 24)`` grey, its aspect ratio forgotten."""
    from PIL import Image

    try:
        pixels = decode_image(path, in_chans=1, short_side=2 * SMALL)[0].numpy()
    except ImageError:  # changed since it was inspected
        return np.zeros((SMALL, SMALL))
    return np.asarray(Image.fromarray(pixels).resize((SMALL, SMALL)), dtype=float)


def join(pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Connect indexes that share a pair (or a longer group), and give the connected sets."""
    parent: dict[int, int] = {}

    def find(index: int) -> int:
        parent.setdefault(index, index)
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, *others in pairs:
        find(first)
        for other in others:
            roots = sorted((find(first), find(other)))
            parent[roots[1]] = roots[0]
    groups: dict[int, list[int]] = defaultdict(list)
    for index in sorted(parent):
        groups[find(index)].append(index)
    return list(groups.values())


def _close_hashes(hashes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indexes whose hashes are at most ``NEAR_BITS`` apart, sorted."""
    having = np.array([index for index, text in enumerate(hashes) if text], dtype=np.int64)
    values = np.array([int(hashes[index], 16) for index in having], dtype=np.uint64)
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        keys = (values >> np.uint64(8 * band)) & np.uint64(255)
        for members in _buckets(keys):
            for position, one in enumerate(members[:-1]):
                others = members[position + 1 :]
                near = _bits(values[others] ^ values[one]) <= NEAR_BITS
                found.update((int(one), int(other)) for other in others[near])
    return sorted((int(having[one]), int(having[other])) for one, other in found)


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits are set in each of ``uint64 (N,)``; NumPy itself counts them from 2.0 on."""
    return _BITS_OF_BYTE[values.view(np.uint8)].reshape(-1, 8).sum(axis=1)


def _buckets(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Positions with equal keys, each sorted."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    yield from np.split(order, borders)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm else 0.0
