"""Images that stay together, in an order that depends on nothing else, and who deals them out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

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


class Dealer(ABC, Generic[S]):
    """Deals blocks to sides: what is decided first, then as :meth:`deal_open` has it.

    Args:
        having: the labels of each image.
        shares: of each side, adding up to 1.
        must_have: a side on which each label is to have an image, if it can.
    """

    def __init__(
        self,
        having: Sequence[tuple[int, ...]],
        shares: Mapping[S, Fraction],
        must_have: S | None,
    ) -> None:
        self.having = having
        self.shares = shares
        self.must_have = must_have
        sizes = Counter(label for labels in having for label in labels)
        self.sizes = dict(sorted(sizes.items()))
        self.counts: dict[S, Counter[int]] = {side: Counter() for side in shares}
        self.side_of: dict[int, S] = {}

    def deal(self, blocks: Sequence[Block], previous: Sequence[S | None] | None) -> list[S]:
        """The side of each image."""
        waiting = []
        for block in blocks:
            side = block.decided(previous)
            if side is None:
                waiting.append(block)
            else:
                self.put(block, side, previous)
        self._give_back(self.deal_open(waiting))
        return [self.side_of[index] for index in range(len(self.having))]

    @abstractmethod
    def deal_open(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """Put each of these on a side; those that may move again, the largest first."""

    def labels_of(self, block: Block) -> Counter[int]:
        """How many of its images have each label."""
        return Counter(label for index in block.members for label in self.having[index])

    def put(self, block: Block, side: S, previous: Sequence[S | None] | None = None) -> None:
        """On a side, but for those of its images that had one."""
        for index in block.members:
            own = previous[index] if previous is not None else None
            self.side_of[index] = side if own is None else own
            self.counts[self.side_of[index]].update(self.having[index])

    def _give_back(self, blocks: Sequence[Block]) -> None:
        """Move the smallest block with a label to the side that must have one and has none."""
        if self.must_have is None:
            return
        for label in self.sizes:
            if self.counts[self.must_have][label]:
                continue
            having = [block for block in blocks if self.labels_of(block)[label]]
            for block in having[-1:]:
                for index in block.members:
                    self.counts[self.side_of[index]].subtract(self.having[index])
                self.put(block, self.must_have)


def largest_first(blocks: Sequence[Block]) -> list[Block]:
    """Of equals in their order."""
    return sorted(blocks, key=lambda block: -len(block.members))


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
