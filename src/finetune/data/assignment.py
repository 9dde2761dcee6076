"""Which image stands on which side: what folder or manifest says, and what they leave open.

- Both sides that are missing, val and test, are held out from the training images; a test
  folder is never used as val.
- A manifest with a split column is taken as it is: nothing more is held out for testing.
- Folds are made of everything that is not test; the fold's own images are the val side.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, replace

from finetune.data.folder import SPLITS, ImageFolder, LabelledImage, Split
from finetune.data.splits import check_fractions, fold_labels, held_out_by, split_labels
from finetune.data.walk import normal_name
from finetune.errors import ImageFolderError, UsageError
from finetune.spec.images import by_side


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How much to hold out and how: see :func:`assign_splits`."""

    val_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 0
    folds: int | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        check_fractions(self.val_fraction, self.test_fraction)
        if self.folds is not None and self.folds < 2:
            raise UsageError(f"Expected at least 2 folds, found {self.folds}.")
        if self.folds is not None and self.fold is not None and not 0 <= self.fold < self.folds:
            raise UsageError(
                f"Expected fold to be one of 0 ... {self.folds - 1}, found {self.fold}."
            )


def assign_splits(
    folder: ImageFolder,
    settings: SplitSettings,
    *,
    keep_test_absent: bool = False,
    only_new: bool = False,
    together: Sequence[Hashable | None] | None = None,
) -> ImageFolder:
    """The folder with every image on a side: train, val or test.

    Args:
        folder: as found; the sides and folds that its images have already stay.
        settings: what to hold out for the sides that are missing.
        keep_test_absent: do not hold out test images: a manifest has said which there are.
        only_new: fill a side that is missing with new images alone: an earlier fit has dealt out
            the others.
        together: of each image, what keeps it with others on one side; by default its group.

    Raises:
        ImageFolderError: there are val or test images of a class without training images.
    """
    if not only_new:  # what a fit has learnt, its own folder has told
        check_classes_in_train(folder)
    images = list(folder.images)
    groups = [image.group for image in images] if together is None else list(together)
    has_folds = settings.folds is not None or settings.fold is not None
    absent: set[Split] = {split for split in SPLITS[1:] if split not in folder.splits}
    to_fill = {split for split in absent if not (split == "val" and has_folds)}
    to_fill -= {"test"} if keep_test_absent else set()
    if any(image.split is None for image in images):
        # New images are dealt to all sides, so that each comes near its share of everything.
        to_fill |= {split for split in SPLITS[1:] if split not in absent}
        images = _deal(folder.root, images, groups, settings, to_fill, movable=(None,))
    elif to_fill and "train" in folder.splits and not only_new:
        images = _deal(folder.root, images, groups, settings, to_fill, movable=("train",))
    if has_folds:
        images = _assign_folds(folder.root, images, groups, settings)
    return replace(folder, images=tuple(sorted(images, key=by_side)))


def check_classes_in_train(folder: ImageFolder) -> None:
    """Refuse a split folder whose val or test has a class that train lacks."""
    extra = classes_missing_from_train(folder)
    if extra:
        sides = [s for s in ("val", "test") if set(extra) & set(folder.classes_of(s))]
        raise ImageFolderError(
            f"Expected every class to have training images, found {', '.join(map(repr, extra))} "
            f"only in {' and '.join(sides)} of {folder.root}; add training images or move the "
            "folders away."
        )


def classes_missing_from_train(folder: ImageFolder) -> list[str]:
    """Classes with images in val or test, but none that train could learn from."""
    if "train" not in folder.splits:
        return []
    learnable = {*folder.classes_of("train"), *folder.classes_of(None)}
    # A checkpoint's vocabulary may hold classes of which this folder has no image at all.
    judged = {*folder.classes_of("val"), *folder.classes_of("test")}
    return [name for name in folder.class_names if name in judged - learnable]


def image_keys(root: str | os.PathLike[str], images: Sequence[LabelledImage]) -> list[str]:
    """What identifies each image from run to run: its path below the root, in NFC."""
    return [normal_name(key) for key in relative_names(root, images)]


def relative_names(root: str | os.PathLike[str], images: Sequence[LabelledImage]) -> list[str]:
    """Each image's path below the root with slashes, as the disk spells it; others absolute."""
    as_given = os.path.join(os.fspath(root), "")
    prefix = os.path.join(os.path.abspath(root), "")
    names = []
    for image in images:
        name = str(image.path)
        if name.startswith(as_given) and ".." not in name:  # the usual case, in a tenth of the time
            name = name[len(as_given) :]
        else:
            name = os.path.abspath(name).removeprefix(prefix)
        names.append(name.replace(os.sep, "/"))
    return names


def names_below(root: str | os.PathLike[str], images: Sequence[LabelledImage]) -> list[str]:
    """Each image's path from the root in NFC, never absolute: one outside begins with ``..``."""
    return [
        os.path.relpath(key, root).replace(os.sep, "/") if os.path.isabs(key) else key
        for key in image_keys(root, images)
    ]


def _deal(
    root: os.PathLike[str],
    images: list[LabelledImage],
    groups: Sequence[Hashable | None],
    settings: SplitSettings,
    to_fill: Set[Split],
    *,
    movable: tuple[Split | None],
) -> list[LabelledImage]:
    """Deal out images that may move to train and the sides to fill; the others stay.

    Where training images move, val and test folders do not count for the shares; where only new
    images do, all that is given counts.
    """
    chosen = [i for i, image in enumerate(images) if movable == (None,) or image.split in movable]
    sides = split_labels(
        [images[i].label for i in chosen],
        image_keys(root, [images[i] for i in chosen]),
        val_fraction=settings.val_fraction if "val" in to_fill else 0.0,
        test_fraction=settings.test_fraction if "test" in to_fill else 0.0,
        groups=[groups[i] for i in chosen],
        previous=[None if images[i].split in movable else images[i].split for i in chosen],
        seed=settings.seed,
    )
    result = list(images)
    for i, side in zip(chosen, sides, strict=True):
        result[i] = replace(images[i], split=side)
    return result


def _assign_folds(
    root: os.PathLike[str],
    images: list[LabelledImage],
    groups: Sequence[Hashable | None],
    settings: SplitSettings,
) -> list[LabelledImage]:
    pool = [i for i, image in enumerate(images) if image.split != "test"]
    previous = [images[i].fold for i in pool]
    known = {fold for fold in previous if fold is not None}
    folds = settings.folds or (max(known) + 1 if known else None)
    if folds is None:
        raise UsageError("Expected folds together with fold, found fold alone; give --data.folds.")
    if known and max(known) >= folds:
        raise UsageError(
            f"Expected at least {max(known) + 1} folds, as in the manifest, found {folds}."
        )
    labels = [images[i].label for i in pool]
    fold_of = fold_labels(
        labels,
        image_keys(root, [images[i] for i in pool]),
        folds=folds,
        groups=[groups[i] for i in pool],
        previous=previous,
        seed=settings.seed,
    )
    if settings.fold is None:
        held_out = [images[i].split == "val" for i in pool]
    else:
        held_out = held_out_by(settings.fold, fold_of, labels)
    result = list(images)
    for i, own, out in zip(pool, fold_of, held_out, strict=True):
        result[i] = replace(images[i], fold=own, split="val" if out else "train")
    return result
