"""Find the labelled images of a folder, and say about every other file why it is not used.

Layouts::

    ROOT/<class>/**/*.jpg                          one unsplit set
    ROOT/train|val|test/<class>/**/*.jpg           split by folders; also valid, validation, ...

The folder right below the root (or below the split) is the class; deeper folders belong to it.
Nothing is opened here: :mod:`finetune.data.health` tells whether a file really is an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.walk import (
    IMAGE_SUFFIXES,
    UnusedFile,
    Walk,
    holds_images_alone,
    lines_about_expected,
    normal_name,
    unlisted_message,
)
from finetune.errors import ImageFolderError
from finetune.spec.images import SPLITS as SPLITS
from finetune.spec.images import LabelledImage as LabelledImage
from finetune.spec.images import Split as Split
from finetune.spec.images import by_side
from finetune.spec.labels import indexes, moved, several

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_Found = tuple[Split | None, str, str]  # split, class name, file


@dataclass(frozen=True)
class ImageFolder:
    """All labelled images under a root, in a fixed order, and everything left out.

    ``class_names`` are those with at least one image in any split, sorted by code point, in
    Unicode's composed form (NFC); ``images`` are sorted by split, class and file name.
    ``by_rows``: rows of a manifest or of shards say the labels, not folders.
    """

    root: Path
    class_names: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    unused: tuple[UnusedFile, ...] = ()
    unlisted: tuple[UnusedFile, ...] = ()  # folders whose images nobody can know
    empty_classes: tuple[str, ...] = ()
    by_rows: bool = False

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images, in the order train, val, test; () if unsplit."""
        present = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in present)

    @property
    def has_label_sets(self) -> bool:
        """Whether its images have several labels each, instead of one class."""
        return several(image.label for image in self.images[:1])

    @property
    def has_numbers(self) -> bool:
        """Whether a number is known of each of its images, instead of a class."""
        return any(isinstance(image.label, float) for image in self.images[:1])

    @property
    def is_split(self) -> bool:
        """Whether the images already stand on sides."""
        return bool(self.splits)

    def of_split(self, split: Split) -> tuple[LabelledImage, ...]:
        """The images of one split, in order."""
        return tuple(image for image in self.images if image.split == split)

    def classes_of(self, split: Split | None) -> tuple[str, ...]:
        """The classes with at least one image in a split (None: in the unsplit set)."""
        labels = {i for image in self.images if image.split == split for i in indexes(image.label)}
        return tuple(self.class_names[label] for label in sorted(labels))

    def with_class_names(self, class_names: Sequence[str]) -> ImageFolder:
        """The same images with their indexes in another vocabulary, such as a checkpoint's.

        Raises:
            ImageFolderError: a class of this folder is not in the vocabulary.
        """
        if tuple(class_names) == self.class_names:
            return self
        index = {normal_name(name): label for label, name in enumerate(class_names)}
        extra = [name for name in self.class_names if name not in index]
        if extra:
            raise ImageFolderError(
                f"Expected only the classes {_listed(class_names)} in {self.root}, found also "
                f"{_listed(extra)}; correct these labels or folders, or train with them."
            )
        labels = [index[name] for name in self.class_names]
        names = len(class_names)
        images = tuple(
            replace(image, label=moved(image.label, labels, names)) for image in self.images
        )
        return replace(self, class_names=tuple(class_names), images=images)


def scan_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Find all images under ``root`` and the class of each.

    Links are followed, but no folder is read twice. Split folders are recognised when there is a
    training folder, or when nothing but split folders lies in the root; beside other folders one
    that holds images and no folder, such as a class called ``train`` beside ``bus``, is a class.

    Raises:
        ImageFolderError: no such folder, two folders for one split, or no image in any class.
    """
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ImageFolderError(
            f"Expected a folder of images at {root}, found {found}; check --data.root."
        )
    walk = Walk()
    folders = walk.folders_in(root, "outside any class folder")
    split_folders = _split_folders(root, folders)
    found_images: list[_Found]
    if split_folders:
        for folder in folders:
            if folder not in split_folders.values():
                reason = "beside the split folders, so in no split"
                walk.leave_out(folder, reason, expected=True)
        found_images = [
            (split, name, path)
            for split, folder in split_folders.items()
            for name, path in walk.class_files(folder, f"outside any class folder of {split}")
        ]
    else:
        found_images = [(None, name, path) for name, path in walk.classes(folders)]
    return _assemble(root, walk, found_images)


def _assemble(root: Path, walk: Walk, found: list[_Found]) -> ImageFolder:
    if not found:
        raise ImageFolderError(_no_images_message(root, walk))
    class_names = sorted({name for _, name, _ in found})
    label_of = {name: label for label, name in enumerate(class_names)}
    images = [LabelledImage(Path(path), label_of[name], None, split) for split, name, path in found]
    return ImageFolder(
        root=root,
        class_names=tuple(class_names),
        # Within a class the walk's order (sorted by name) stays, for Python's sort is stable.
        images=tuple(sorted(images, key=by_side)),
        unused=tuple(walk.unused),
        unlisted=tuple(walk.unlisted),
        empty_classes=tuple(sorted(walk.empty - label_of.keys())),
    )


def _no_images_message(root: Path, walk: Walk) -> str:
    if walk.unlisted:
        return unlisted_message(walk)
    flat = sum(unused.reason.startswith("outside any class") for unused in walk.unused)
    seen = f"{flat} files outside any class folder" if flat else "none"
    seen = ", ".join([seen, *lines_about_expected(walk.unused)])
    return (
        f"Expected images in {root}/<class>/ or {root}/train/<class>/, found {seen}; "
        f"put each class's images ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}) "
        "into a folder named after the class."
    )


def _split_folders(root: Path, folders: list[str]) -> dict[Split, str]:
    """The folder of each split; empty if the root's folders are classes."""
    named = [(SPLIT_FOLDERS.get(os.path.basename(path).casefold()), path) for path in folders]
    recognised = [(split, path) for split, path in named if split]
    among_others = len(recognised) < len(folders)
    if not recognised or (
        among_others
        and (
            not any(split == "train" for split, _ in recognised)
            or any(holds_images_alone(path) for _, path in recognised)
        )
    ):
        return {}
    result: dict[Split, str] = {}
    for split, path in recognised:
        if split in result:
            names = f"{os.path.basename(result[split])} and {os.path.basename(path)}"
            raise ImageFolderError(
                f"Expected one folder for the split {split} in {root}, found {names}; "
                "merge them or move one away."
            )
        result[split] = path
    return result


def _listed(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
