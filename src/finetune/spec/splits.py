"""On which side each image of a fit stood: what a checkpoint keeps, and every later verb follows.

An image is known again by its content; one of a new content by its path below the root, for it
may be the old image saved again. Of a content on two sides, the side that has seen more wins: train
before val before test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from finetune.errors import CheckpointError
from finetune.spec.images import ImageRef
from finetune.spec.labels import from_text, moved, text

Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")  # what has seen most comes first
# Settings that decide how images are dealt to sides.
DEALING = ("manifest", "val_fraction", "test_fraction", "seed", "folds", "fold", "group_by")
_ID_DIGITS = 32
_REFITTED = "3"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an image stands: its side, and the fold that holds it out, if there are folds.

    Attributes:
        side, fold: of the image.
        refitted: it was val until the final layer was fitted again to all labelled images.
    """

    side: Side
    fold: int | None = None
    refitted: bool = False


@dataclass(frozen=True)
class SplitRecord:
    """How a fit split its images.

    Attributes:
        settings: of the data: fractions, seed, folds, fold, group_by, max_pixels, ...
        class_names: that the labels index.
        images: all of the fit; empty where a file from before this record tells its settings alone.
        standings: of each image.
        listed: the images and labels came from a manifest, not from class folders.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    images: tuple[ImageRef, ...] = ()
    standings: tuple[Standing, ...] = ()
    listed: bool = False

    @property
    def fold(self) -> int | None:
        """The fold that the fit held out, if it was one of a cross-validation."""
        return self.settings.get("fold")

    @property
    def dealing(self) -> dict[str, Any]:
        """The settings that decide how images are dealt to sides, as far as they are set."""
        return {
            name: self.settings[name] for name in DEALING if self.settings.get(name) is not None
        }

    def standing(self, image_id: str, path: str) -> Standing | None:
        """Where an image stood, by its content or else by its path; None if it is new."""
        return self._by_id.get(image_id) or self._by_path.get(path)

    def with_val_trained(self) -> SplitRecord:
        """The same of a fit whose final layer was fitted again to val images as well."""
        trained = [
            replace(at, side="train", refitted=True) if at.side == "val" else at
            for at in self.standings
        ]
        return replace(self, standings=tuple(trained))

    def with_val_again(self) -> SplitRecord:
        """The same for a fit that makes a final layer of its own, the rest having seen no val."""
        held_out = [
            replace(at, side="val", refitted=False) if at.refitted else at for at in self.standings
        ]
        return replace(self, standings=tuple(held_out))

    def with_val(self, ids: Collection[str]) -> SplitRecord:
        """The same for whoever has answers of those who did not see these contents: they are val.

        Where one of them stood on the test side it stays there.
        """
        standings = [
            replace(at, side="val") if at.side == "train" and image.id in ids else at
            for image, at in zip(self.images, self.standings, strict=True)
        ]
        return replace(self, standings=tuple(standings))

    def knows_id(self, image_id: str) -> bool:
        """Whether the fit had an image of this content."""
        return image_id in self._by_id

    def knows_path(self, path: str) -> bool:
        """Whether the fit had an image at this path."""
        return path in self._by_path

    @cached_property
    def _by_id(self) -> dict[str, Standing]:
        return _firsts((image.id for image in self.images), self.standings)

    @cached_property
    def _by_path(self) -> dict[str, Standing]:
        return _firsts((image.path for image in self.images), self.standings)

    @cached_property
    def digest(self) -> str:
        """Equal for fits that have the same contents on the same sides."""
        text = "\n".join(sorted(f"{key} {at.side}" for key, at in self._by_id.items()))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint: few long texts, which its reader takes in one step each.

        Labels and folds are numbers between spaces, ``-`` where there is no fold, and several
        labels an image as in :func:`finetune.spec.labels.text`; sides are the digits 0, 1 and 2 for
        train, val and test, and 3 for val that was refitted; no path holds the character between
        paths.
        """
        folds = [each.fold for each in self.standings]
        return {
            "class_names": list(self.class_names),
            "ids": "".join(image.id for image in self.images),
            "paths": "\0".join(image.path for image in self.images),
            "labels": " ".join(text(image.label) for image in self.images),
            "sides": "".join(_digit(each) for each in self.standings),
            "folds": " ".join("-" if fold is None else str(fold) for fold in folds)
            if any(fold is not None for fold in folds)
            else "",
            "listed": self.listed,
            "digest": self.digest,
        }

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> SplitRecord:
        """From the ``finetune`` entry of a checkpoint, with its settings ``data``.

        Raises:
            CheckpointError: the split is damaged.
        """
        settings, kept = dict(entry.get("data") or {}), entry.get("split")
        if kept is None:
            return cls(settings)
        try:
            record = cls(
                settings,
                tuple(kept["class_names"]),
                _images(kept["ids"], kept["paths"], kept["labels"]),
                _standings(kept["sides"], kept["folds"]),
                bool(kept["listed"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _damaged(f"{type(error).__name__}: {error}") from error
        if len(record.images) != len(record.standings) or record.digest != kept.get("digest"):
            raise _damaged("its digest is another")
        return record


def united(records: Sequence[SplitRecord]) -> SplitRecord:
    """One record of several fits: an image is test, or val, only if no fit trained on it.

    Settings are the first one's; folds are left out where the fits differ in theirs.
    """
    first = records[0]
    if len({record.digest for record in records}) == 1:
        return first
    names = tuple(dict.fromkeys(name for record in records for name in record.class_names))
    found: dict[tuple[str, str], tuple[ImageRef, Standing]] = {}
    for record in records:
        positions = [names.index(name) for name in record.class_names]
        for image, standing in zip(record.images, record.standings, strict=True):
            label = moved(image.label, positions, len(names))
            ref = ImageRef(image.id, image.path, label)
            earlier = found.get((image.id, image.path))
            both = [standing] if earlier is None else [earlier[1], standing]
            found[image.id, image.path] = ref, min(both, key=_rank)
    settings = dict(first.settings)
    if len({record.fold for record in records}) > 1:
        settings = {k: value for k, value in settings.items() if k not in ("folds", "fold")}
    images, standings = zip(*found.values(), strict=True)
    return SplitRecord(settings, names, images, standings, any(each.listed for each in records))


def _rank(standing: Standing) -> tuple[int, bool]:
    return SIDES.index(standing.side), standing.refitted


def _digit(standing: Standing) -> str:
    return _REFITTED if standing.refitted else str(SIDES.index(standing.side))


def _firsts(keys: Iterable[str], standings: Sequence[Standing]) -> dict[str, Standing]:
    found: dict[str, Standing] = {}
    for key, standing in zip(keys, standings, strict=True):
        earlier = found.get(key)
        if earlier is None or _rank(standing) < _rank(earlier):
            found[key] = standing
    return found


def _images(ids: str, paths: str, labels: str) -> tuple[ImageRef, ...]:
    each = [ids[start : start + _ID_DIGITS] for start in range(0, len(ids), _ID_DIGITS)]
    return tuple(
        ImageRef(identity, path, from_text(label))
        for identity, path, label in zip(
            each, paths.split("\0") if each else [], labels.split(), strict=True
        )
    )


def _standings(sides: str, folds: str) -> tuple[Standing, ...]:
    numbers = [None if each == "-" else int(each) for each in folds.split()] or [None] * len(sides)
    return tuple(
        Standing("train", fold, refitted=True)
        if side == _REFITTED
        else Standing(SIDES[int(side)], fold)
        for side, fold in zip(sides, numbers, strict=True)
    )


def _damaged(problem: str) -> CheckpointError:
    return CheckpointError(
        f"Expected the split of a fit in the checkpoint, found it damaged ({problem}); "
        "take another copy."
    )
