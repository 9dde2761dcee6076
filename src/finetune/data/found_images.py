"""What lies in a folder of images: found once, each file opened once, what is broken left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.data.decoding import MAX_PIXELS
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.findings import Finding
from finetune.data.folder import ImageFolder, scan_folder
from finetune.data.following import listed_folder
from finetune.data.groups import groups_by_pattern
from finetune.data.health import check_folder, readable_folder, unreadable_files
from finetune.data.inspection import Inspection, inspect_files
from finetune.data.label_folders import as_label_sets, with_labels_of_copies, without_copies
from finetune.data.labelled_shards import has_label, read_shards
from finetune.data.manifest import manifest_columns, read_manifest, with_more
from finetune.data.number_cells import NUMBERS, refuse_folders
from finetune.data.shard_files import folder_of, shards_at
from finetune.errors import ImageFolderError, UsageError
from finetune.runtime import Runtime
from finetune.spec.choices import OnBadImage, TaskOfData
from finetune.spec.splits import SplitRecord


def read_images(
    root: Path,
    manifest: str | os.PathLike[str] | None,
    *,
    allow_outside: bool = False,
    group_column: str = "group",
    task: TaskOfData = "auto",
    label_columns: Sequence[str] | None = None,
) -> ImageFolder:
    """The images of a manifest, of shards, or of class folders, which may be labels of several.

    See :func:`finetune.data.manifest.read_manifest`.
    """
    shards = shards_at(root)
    if shards and manifest is None:
        return read_shards(shards, folder_of(root), task=task, label_columns=label_columns or ())
    if manifest is None:
        found = scan_folder(root)
        refuse_folders(found, task)
        return as_label_sets(found) if task == "multilabel" else found
    return read_manifest(
        manifest,
        folder_of(root),
        allow_outside=allow_outside,
        group_column=group_column,
        task=task,
        label_columns=label_columns or (),
    )


@dataclass(frozen=True)
class FoundImages:
    """The images of a folder or a manifest; every step is done when it is first asked for.

    Attributes:
        root, manifest, allow_outside, group_by, max_pixels, max_decoding_mb, on_bad_image: as in
            :class:`finetune.data.datamodule.ImageFolderDataModule`.
        cache_dir: where what was found out about a file is remembered.
        remember: whether it is.
        task: whether an image has one class, several labels or a number.
        label_columns: of the manifest, one a label; see :mod:`finetune.data.label_cells`.
        fitted_columns: those of a fit, which shards may be labelled by too.
        more: a manifest of further images.
        listed: a fit by manifest, whose images and labels count where no manifest is given.
    """

    root: Path
    manifest: str | None = None
    allow_outside: bool = False
    group_by: str | None = None
    max_pixels: int = MAX_PIXELS
    max_decoding_mb: int = MAX_DECODING_MB
    on_bad_image: OnBadImage = "error"
    cache_dir: str | None = None
    remember: bool = True
    listed: SplitRecord | None = None
    task: TaskOfData = "auto"
    label_columns: tuple[str, ...] = ()
    fitted_columns: tuple[str, ...] = ()
    more: str | None = None

    @property
    def folders_are_labels(self) -> bool:
        """Whether an image may lie in several class folders, and then has their labels."""
        return self.task == "multilabel" and not self.found.by_rows

    @cached_property
    def found(self) -> ImageFolder:
        """All of them, readable or not."""
        followed = self.listed if self.manifest is None else None
        listed = listed_folder(folder_of(self.root), followed) if followed else None
        if followed and listed is None and self.task == "multilabel":
            raise ImageFolderError(
                f"Expected images of a fit, which was by manifest, in {self.root}, found none; "
                "give --data.manifest, for class folders do not say all labels of an image."
            )
        found = listed or read_images(
            self.root,
            self.manifest,
            allow_outside=self.allow_outside,
            task=self.task,
            label_columns=self.label_columns or self._fitted_columns(),
        )
        if self.more is not None:
            task: TaskOfData = "multilabel" if found.has_label_sets else "multiclass"
            task = NUMBERS if found.has_numbers else task
            further = read_manifest(
                self.more, folder_of(self.root), allow_outside=self.allow_outside, task=task
            )
            found = with_more(found, further)
        return groups_by_pattern(found, self._pattern) if self._pattern else found

    def _fitted_columns(self) -> tuple[str, ...]:
        """The fit's, of shards that say no labels otherwise."""
        if self.manifest is not None or not self.fitted_columns:
            return ()
        shards = shards_at(self.root)
        return self.fitted_columns if shards and not has_label(shards[0]) else ()

    @property
    def _pattern(self) -> str | None:
        """What groups by the path.

        Raises:
            UsageError: it is the name of a column, which a split keeps together for good.
        """
        if self.group_by and self.manifest and self.group_by in manifest_columns(self.manifest):
            raise UsageError(
                f"Expected a regular expression on paths to group by, found {self.group_by!r}, a "
                f"column of {self.manifest}; call the column group, or keep its values together "
                f"with finetune split {self.root} --manifest {self.manifest} --group-by "
                f"{self.group_by} --output split.csv."
            )
        return self.group_by

    @property
    def paths(self) -> list[Path]:
        """Their files."""
        return [image.path for image in self.found.images]

    @cached_property
    def inspections(self) -> list[Inspection]:
        """What each file turned out to be, in the same order; each process opens its share."""
        runtime = Runtime()
        own = inspect_files(
            runtime.share(self.paths),
            root=self.root,
            max_pixels=self.max_pixels,
            max_decoding_mb=self.max_decoding_mb,
            cache_dir=self.cache_dir,
            remember=self.remember,
        )
        seen = {each.path: each for share in runtime.gather(own) for each in share}
        return [seen[path] for path in self.paths]

    def readable(self) -> ImageFolder:
        """Those without the broken ones, with every content's hash.

        Raises:
            ImageError: some are broken, and ``on_bad_image`` is ``error``.
        """
        folder = readable_folder(self._united, self.inspections, on_bad_image=self.on_bad_image)
        return without_copies(folder) if self.folders_are_labels else folder

    @cached_property
    def _united(self) -> ImageFolder:
        """All of them, with the labels of every folder that an image lies in."""
        if not self.folders_are_labels:
            return self.found
        return with_labels_of_copies(self.found, self.inspections)

    @property
    def median_short_side(self) -> int:
        """Of the readable ones, in pixels; 0 where there are none."""
        sides = [min(seen.width, seen.height) for seen in self.inspections if not seen.problem]
        return sorted(sides)[(len(sides) - 1) // 2] if sides else 0

    @property
    def findings(self) -> list[Finding]:
        """What :mod:`finetune.data.health` has to say about the folder, errors first."""
        return check_folder(self._united, self.inspections)

    @property
    def bad_images(self) -> list[Finding]:
        """The files that cannot be read."""
        return unreadable_files(self.inspections, self.found.unlisted)
