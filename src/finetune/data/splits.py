"""Stratified, group-aware, repeatable splits and folds.

Who stands where is decided class by class, in the order of a hash of seed and key (the file's path
below the root): no random state, no dependence on the order in which a disk lists its files.
Given an earlier split, old images keep their side and only new ones are dealt out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from finetune.data.dealt_blocks import Block, Dealer, blocks_of, largest_first
from finetune.data.folder import Split
from finetune.data.label_set_dealer import LabelSetDealer
from finetune.errors import UsageError
from finetune.spec.labels import Label, indexes
from finetune.spec.numbers import quantile_bins

S = TypeVar("S", bound=Hashable)


def split_labels(
    labels: Sequence[Label],
    keys: Sequence[str],
    *,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    groups: Sequence[Hashable | None] | None = None,
    previous: Sequence[Split | None] | None = None,
    seed: int = 0,
) -> list[Split]:
    """The side of each image, stratified by class.

    Without groups every class has on every side its share of images, rounded up or down, and at
    least one in train. With groups (None: a group of its own) no group stands on two sides, and
    the shares are as near as dealing out whole groups, largest first, allows.

    Args:
        labels: ``(N,)`` class indexes; or several labels an image, which are stratified label by
            label, see :mod:`finetune.data.label_set_dealer`; or numbers, stratified by quantiles.
        keys: ``(N,)`` names that identify the images, unchanged from run to run.
        val_fraction, test_fraction: shares of all images, in ``[0, 1)``, together below 1.
        groups: ``(N,)`` values; images with equal ones stay together.
        previous: ``(N,)`` sides that are decided already; None for new images.
        seed: another seed deals out other images.
    """
    check_fractions(val_fraction, test_fraction)
    val, test = Fraction(str(val_fraction)), Fraction(str(test_fraction))
    shares: dict[Split, Fraction] = {"train": 1 - val - test, "val": val, "test": test}
    # Between val and test in the order of the hash, so that these two hardly ever swap images.
    ordered: dict[Split, Fraction] = {side: shares[side] for side in ("val", "train", "test")}
    dealer = _dealer(labels, ordered, must_have="train")
    return dealer.deal(blocks_of(keys, groups, seed), previous)


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that are none, or that leave nothing to train on."""
    for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= share < 1:
            raise UsageError(f"Expected {name} to be at least 0 and below 1, found {share}.")
    if val_fraction + test_fraction >= 1:
        raise UsageError(
            "Expected val_fraction and test_fraction to leave something for training, found "
            f"{val_fraction} + {test_fraction}; lower one of them."
        )


def fold_labels(
    labels: Sequence[Label],
    keys: Sequence[str],
    *,
    folds: int,
    groups: Sequence[Hashable | None] | None = None,
    previous: Sequence[int | None] | None = None,
    seed: int = 0,
) -> list[int]:
    """The fold in ``0 ... folds - 1`` that holds each image out, stratified by class.

    A class has in every fold its share of images, rounded up or down. A class with one image
    is held out in one fold, so that fold's training lacks it: see :func:`held_out_by`.
    """
    if folds < 2:
        raise UsageError(f"Expected at least 2 folds, found {folds}.")
    shares = dict.fromkeys(range(folds), Fraction(1, folds))
    dealer = _dealer(labels, shares, must_have=None)
    return dealer.deal(blocks_of(keys, groups, seed), previous)


def held_out_by(fold: int, fold_of: Sequence[int | None], labels: Sequence[Label]) -> list[bool]:
    """Whether each image is held out when training for ``fold``.

    A class whose images would all be held out stays in training as a whole: a class that was
    never seen cannot be predicted, so measuring it would only blur the figure.
    """
    pairs = [(indexes(label), own) for label, own in zip(labels, fold_of, strict=True)]
    remaining = Counter(index for having, own in pairs if own != fold for index in having)
    return [own == fold and all(remaining[index] for index in having) for having, own in pairs]


def _dealer(
    labels: Sequence[Label], shares: Mapping[S, Fraction], must_have: S | None
) -> Dealer[S]:
    """One for classes, or bins of numbers, and one for several labels an image."""
    classes = [label for label in labels if isinstance(label, int)]
    numbers = [label for label in labels if isinstance(label, float)]
    if len(classes) == len(labels):
        return _Dealer(classes, shares, must_have)
    if len(numbers) == len(labels):
        return _Dealer(quantile_bins(numbers), shares, must_have)
    return LabelSetDealer(labels, shares, must_have)


class _Dealer(Dealer[S]):
    """Deals groups first, then single images exactly."""

    def __init__(
        self, labels: Sequence[int], shares: Mapping[S, Fraction], must_have: S | None
    ) -> None:
        super().__init__([(label,) for label in labels], shares, must_have)
        self.targets = self._targets()

    def deal_open(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """Groups by the shares of their classes, the largest first, then each class's images."""
        grouped = [block for block in largest_first(blocks) if len(block.members) > 1]
        for block in grouped:
            self.put(block, self._least_filled(block))
        singles: dict[int, list[Block]] = defaultdict(list)
        for block in blocks:
            if len(block.members) == 1:
                singles[self.having[block.members[0]][0]].append(block)
        for label in sorted(singles):
            self._deal_singles(label, singles[label])
        return grouped

    def _targets(self) -> dict[int, dict[S, int]]:
        """For each class, whole numbers of images a side that differ from its share by < 1."""
        totals: Counter[S] = Counter()
        targets = {}
        for label, size in self.sizes.items():
            targets[label] = self._apportion(size, totals)
            totals.update(targets[label])
        return targets

    def _apportion(self, size: int, totals: Mapping[S, int]) -> dict[S, int]:
        ideal = {side: share * size for side, share in self.shares.items()}
        result = {side: int(value) for side, value in ideal.items()}

        def claim(side: S) -> tuple[bool, bool, Fraction, int]:
            empty = result[side] == 0 and self.shares[side] > 0
            return (
                empty and side == self.must_have,
                empty,
                ideal[side] - int(ideal[side]),
                -totals[side],
            )

        rounded_up = sorted((side for side in ideal if ideal[side] % 1), key=claim, reverse=True)
        for side in rounded_up[: size - sum(result.values())]:
            result[side] += 1
        return result

    def _least_filled(self, block: Block) -> S:
        """The side that putting the block on brings nearest to all classes' shares."""
        classes = self.labels_of(block)

        def excess(side: S) -> float:
            return sum(
                number * (self.counts[side][label] - self.targets[label][side]) / self.sizes[label]
                for label, number in classes.items()
            )

        return min((side for side in self.shares if self.shares[side] > 0), key=excess)

    def _deal_singles(self, label: int, blocks: Sequence[Block]) -> None:
        """Fill the sides of one class to their targets, each from a stretch of the hash's order."""
        needs = {
            side: max(0, target - self.counts[side][label])
            for side, target in self.targets[label].items()
        }
        while sum(needs.values()) > len(blocks):  # sides over their target left too little
            spare = [s for s in needs if not (s == self.must_have and needs[s] == 1)] or [*needs]
            needs[max(spare, key=needs.__getitem__)] -= 1
        start = 0
        for side, need in needs.items():
            for block in blocks[start : start + need]:
                self.put(block, side)
            start += need
