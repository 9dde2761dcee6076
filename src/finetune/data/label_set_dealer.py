"""Sides for images with several labels each: iterative stratification, of whole blocks.

Source: Sechidis et al., On the stratification of multi-label data, 2011. The rarest label is dealt
out first, image by image to the side that lacks most of it. Ours are: blocks of images that stay
together, largest first; ties and the order of blocks come from a hash of seed and key, so there is
no random state; and each label has an image where it must have one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

from finetune.data.dealt_blocks import Block
from finetune.spec.labels import Label, indexes

S = TypeVar("S", bound=Hashable)
ANY = -1  # counts every image, those without a label included


class LabelSetDealer(Generic[S]):
    """Deals blocks to sides.

    Args:
        labels: ``(N,)``, several an image.
        shares: of each side, adding up to 1.
        must_have: a side on which each label is to have an image, if it can.
    """

    def __init__(
        self, labels: Sequence[Label], shares: Mapping[S, Fraction], must_have: S | None
    ) -> None:
        self.having = [(*indexes(label), ANY) for label in labels]
        self.shares = shares
        self.must_have = must_have
        sizes = Counter(label for having in self.having for label in having)
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
                self._put(block, side, previous)
        dealt = sorted(waiting, key=lambda block: -len(block.members))
        self._deal_by_label(dealt)
        self._give_back(dealt)
        return [self.side_of[index] for index in range(len(self.having))]

    def _deal_by_label(self, blocks: Sequence[Block]) -> None:
        """The label with the fewest images left first; those without any label in the end."""
        left = [(block, self._labels_of(block)) for block in blocks]
        while left:
            remaining: Counter[int] = Counter()
            for _, labels in left:
                remaining.update(labels)
            rarest = min(remaining, key=lambda label: (label == ANY, remaining[label], label))
            rest = []
            for block, labels in left:
                if labels[rarest]:
                    self._put(block, self._lacking(rarest))
                else:
                    rest.append((block, labels))
            left = rest

    def _labels_of(self, block: Block) -> Counter[int]:
        return Counter(label for index in block.members for label in self.having[index])

    def _lacking(self, label: int) -> S:
        """The side that lacks most images of a label; of equals, most images at all."""

        def lack(side: S) -> tuple[Fraction, Fraction]:
            wanted = [self.shares[side] * self.sizes[each] for each in (label, ANY)]
            return (
                wanted[0] - self.counts[side][label],
                wanted[1] - self.counts[side][ANY],
            )

        return max((side for side in self.shares if self.shares[side] > 0), key=lack)

    def _put(self, block: Block, side: S, previous: Sequence[S | None] | None = None) -> None:
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
            having = [block for block in blocks if self._labels_of(block)[label]]
            for block in having[-1:]:
                for index in block.members:
                    self.counts[self.side_of[index]].subtract(self.having[index])
                self._put(block, self.must_have)
