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
from typing import TypeVar

from finetune.data.dealt_blocks import Block, Dealer, largest_first
from finetune.spec.labels import Label, indexes

S = TypeVar("S", bound=Hashable)
ANY = -1  # counts every image, those without a label included


class LabelSetDealer(Dealer[S]):
    """Deals blocks of images with several labels each to sides."""

    def __init__(
        self, labels: Sequence[Label], shares: Mapping[S, Fraction], must_have: S | None
    ) -> None:
        super().__init__([(*indexes(label), ANY) for label in labels], shares, must_have)

    def deal_open(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """The label with the fewest images left first; those without any label in the end."""
        dealt = largest_first(blocks)
        left = [(block, self.labels_of(block)) for block in dealt]
        while left:
            remaining: Counter[int] = Counter()
            for _, labels in left:
                remaining.update(labels)
            rarest = min(remaining, key=lambda label: (label == ANY, remaining[label], label))
            rest = []
            for block, labels in left:
                if labels[rarest]:
                    self.put(block, self._lacking(rarest))
                else:
                    rest.append((block, labels))
            left = rest
        return dealt

    def _lacking(self, label: int) -> S:
        """The side that lacks most images of a label; of equals, most images at all."""

        def lack(side: S) -> tuple[Fraction, Fraction]:
            wanted = [self.shares[side] * self.sizes[each] for each in (label, ANY)]
            return (
                wanted[0] - self.counts[side][label],
                wanted[1] - self.counts[side][ANY],
            )

        return max((side for side in self.shares if self.shares[side] > 0), key=lack)
