"""The images of a folder or manifest, each on a side: as found, dealt out, or as a fit had it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.assignment import SplitSettings, assign_splits
from finetune.data.folder import ImageFolder, LabelledImage, Split
from finetune.data.following import differences, follow, record_of, trained
from finetune.data.found_images import FoundImages
from finetune.data.groups import groups_with_duplicates
from finetune.data.walk import holds_images_alone
from finetune.errors import ImageFolderError, ManifestError
from finetune.spec.splits import SplitRecord

# Settings that name places of this machine, which no checkpoint tells.
PLACES = ("root", "manifest", "more", "cache_dir")


def none_on_side(root: Path, split: Split, *, followed: bool) -> ImageFolderError:
    """What to say where a side has no image; ``followed``: all others have trained a fit."""
    remedy = f"give {root}/{split}/<class>/"
    if split != "train":
        remedy += f" or a {split}_fraction above 0"
    if followed:
        remedy = "a fit has trained on all others; add images, or give --data.manifest"
    return ImageFolderError(f"Expected {split} images in {root}, found none; {remedy}.")


def one_class_only(root: Path, only: str) -> ImageFolderError:
    """What to say where there is one class; it may be the folder itself that was meant."""
    inner = root / only
    nested = any((inner / name).is_dir() for name in ("train", "val", "test"))
    if inner.is_dir() and not nested:  # a folder around those of the classes
        nested = sum(holds_images_alone(str(path)) for path in inner.iterdir() if path.is_dir()) > 1
    remedy = (
        f"did you mean --data.root {inner}?"
        if nested
        else "put each class's images into a folder of its own."
    )
    return ImageFolderError(
        f"Expected at least two classes in {root}, found only {only!r}; {remedy}"
    )


class Sides:
    """Puts images on sides; every step is done when it is first asked for.

    Args:
        found_images: what was found.
        settings: what to hold out where nothing says sides.
    """

    def __init__(self, found_images: FoundImages, settings: SplitSettings) -> None:
        self.found_images = found_images
        self.settings = settings
        self.followed: SplitRecord | None = None
        self._allow_reuse = False
        self._always = False
        self._folder: ImageFolder | None = None
        self._record: tuple[ImageFolder, SplitRecord] | None = None
        self._judged: set[Split] = set()

    def follow(self, record: SplitRecord, *, allow_reuse: bool, always: bool) -> None:
        """Follow an earlier fit; see ``ImageFolderDataModule.follow``."""
        self.followed = record if record.images else None
        self._allow_reuse, self._always = allow_reuse, always
        self._folder = None
        self._judged.clear()
        columns = tuple(record.settings.get("label_columns") or ())
        self.found_images = replace(self.found_images, fitted_columns=columns)
        if record.images and record.listed and not always:
            self.found_images = replace(self.found_images, listed=record)

    def folder(self, class_names: Sequence[str] | None) -> ImageFolder:
        """Every image with its side, and its label in these names (None: the folder's own)."""
        wanted = tuple(class_names or self.found_images.found.class_names)
        if self._folder is None or self._folder.class_names != wanted:
            self._folder = self._assigned(wanted)
        return self._folder

    def _assigned(self, class_names: tuple[str, ...]) -> ImageFolder:
        found = self.found_images.readable().with_class_names(class_names)
        as_given = self.found_images.manifest is not None and found.is_split
        record = None if as_given and not self._always else self.followed
        assigned = assign_splits(
            found if record is None else follow(found, record),
            self.settings,
            keep_test_absent=as_given,
            only_new=record is not None,
            together=groups_with_duplicates(found.images),
        )
        # Once more: folds of a folder that has grown may have moved an image that trained.
        return assigned if record is None else follow(assigned, record)

    def of_split(self, folder: ImageFolder, split: Split) -> tuple[LabelledImage, ...]:
        """The images of one side.

        Raises:
            ManifestError: some of val or test have trained the fit that is followed, by a manifest
                that says otherwise.
        """
        images = folder.of_split(split)
        if self.followed is not None and split != "train" and split not in self._judged:
            self._judged.add(split)
            self._refuse_trained(trained(folder, self.followed, split), split, len(images))
        return images

    def _refuse_trained(self, found: list[LabelledImage], split: Split, judged: int) -> None:
        if not found:
            return
        message = (
            f"Expected {split} images that did not train the checkpoint, found {len(found)} of "
            f"{judged} that did, the first {found[0].path}"
        )
        if not self._allow_reuse:
            self._judged.clear()
            raise ManifestError(f"{message}; take them out of the manifest, or add --allow-reuse.")
        warnings.warn(f"{message}; the figures will flatter.", stacklevel=5)

    def record(self, folder: ImageFolder, settings: dict[str, Any]) -> SplitRecord:
        """What a fit on these sides notes in its checkpoints; computed once."""
        if self._record is None or self._record[0] is not folder:
            settings = {key: value for key, value in settings.items() if key not in PLACES}
            listed = self.found_images.manifest is not None or self.found_images.listed is not None
            noted = record_of(folder, settings, listed=listed, earlier=self.followed)
            self._record = folder, noted
        return self._record[1]

    def differences(self, folder: ImageFolder) -> str:
        """What has come, changed and gone since the fit that is followed; empty if nothing has."""
        if self.followed is None:
            return ""
        given = {image.path: image.split for image in self.found_images.found.images}
        left = sum(i.split != "test" and given.get(i.path) == "test" for i in folder.images)
        lines = [str(differences(folder, self.followed))]
        if left:
            lines.append(
                f"{left} images of the test side stood in train or val of the fit, perhaps as "
                "copies: they do not test"
            )
        return "\n".join(filter(None, lines))
