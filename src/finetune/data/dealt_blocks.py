"""Images that stay together when sides are dealt out, in an order that depends on nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Block:
    """Images that stay together."""

    members: tuple[int, ...]
    order: bytes

    def decided(self, previous: Sequence[S | None] | None) -> S | None:
        """The side that most of its images had, if they had one."""
        if previous is None:
            return None
        had = Counter(side for index in self.members if (side := previous[index]) is not None)
        return had.most_common(1)[0][0] if had else None


def blocks_of(
    keys: Sequence[str], groups: Sequence[Hashable | None] | None, seed: int
) -> list[Block]:
    """Groups and single images, sorted by a hash that depends on the seed and the keys alone."""
    together: dict[Hashable, list[int]] = defaultdict(list)
    blocks = []
    for index, key in enumerate(keys):
        group = None if groups is None else groups[index]
        if group is None:
            blocks.append(Block((index,), _hash(seed, key)))
        else:
            together[group].append(index)
    for members in together.values():
        blocks.append(Block(tuple(members), _hash(seed, min(keys[i] for i in members))))
    return sorted(blocks, key=lambda block: (block.order, block.members))


def _hash(seed: int, key: str) -> bytes:
    content = f"{seed}/{key}".encode(errors="surrogateescape")
    return hashlib.blake2b(content, digest_size=8).digest()
