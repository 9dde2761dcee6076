"""``finetune split``: write who stands on which side into a CSV manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands import folder_options as options
from finetune.commands.guest import Where
from finetune.commands.outputs import TABLES, TableFile, wanted_output
from finetune.commands.verb import verb
from finetune.spec.choices import TaskOfData

if TYPE_CHECKING:
    from finetune.data.folder import ImageFolder


@verb
def split(
    data: Where,
    *,
    output: TableFile = None,
    overwrite: bool = False,
    manifest: options.Manifest = None,
    allow_outside: options.AllowOutside = False,
    task: options.Task = "auto",
    label_columns: options.LabelColumns = None,
    previous: Where | None = None,
    val_fraction: options.ValFraction = 0.2,
    test_fraction: options.TestFraction = 0.2,
    folds: options.Folds = None,
    group_by: options.GroupBy = None,
    on_bad_image: options.BadImages = "error",
    seed: options.Seed = 0,
    cache_dir: options.CacheDir = None,
    quiet: bool = False,
) -> ImageFolder:
    """Decide which images are for training, validation and testing, stratified by class or label.

    It is written as a CSV that --data.manifest reads. The folder stays as it is.

    Args:
        data: DIR/<class>/... or DIR/train|val|test/<class>/..., or shards: 'x{0..9}.tar', x.parquet
        output: the CSV to write.
        overwrite: replace what is there.
        manifest: CSV path,label[,group] to split instead of the folder.
        allow_outside: accept files of the manifest outside DIR.
        task: whether a cell of the manifest is one class, several labels or a number; auto: one of
            the first two, as it has it.
        label_columns: columns of the manifest, one a label, with 1, 0 or nothing (not known); or
            the one of numbers.
        previous: an earlier CSV: its images keep their sides, new ones are added.
        val_fraction, test_fraction: share held out where nothing says which, at least 0 and below
            1.
        folds: divide everything but test into this many folds as well, at least 2.
        group_by: regular expression on the path below DIR, or the name of a column of --manifest:
            images with equal values stay on one side.
        on_bad_image: what to do with files that cannot be read.
        seed: another seed, another split.
        cache_dir: instead of the platform's cache folder.
        quiet: print nothing.

    Returns:
        The folder with every image on a side: ``images``, each with ``path``, ``label``, ``split``.

    Raises:
        DataError: no folder of images, or one that cannot be read.
        UsageError: shares or folds that are none, or an output that must not be written.
    """
    written = wanted_output(
        output,
        endings=TABLES,
        overwrite=overwrite,
        inputs=[manifest, previous],
        images=[data],
        hint=f"keep its sides with --previous {output}, ",
    )
    from finetune.data.assignment import SplitSettings, assign_splits
    from finetune.data.fetched_shards import brought_here
    from finetune.data.groups import groups_with_duplicates
    from finetune.data.health import readable_folder
    from finetune.data.inspection import inspect_files
    from finetune.data.label_folders import with_labels_of_copies, without_copies
    from finetune.data.manifest import write_manifest

    settings = SplitSettings(
        val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, folds=folds
    )
    folder = _found(
        brought_here(data, cache_dir),
        manifest,
        previous,
        group_by,
        outside=allow_outside,
        task=task,
        label_columns=label_columns,
    )
    if written is not None:
        written.keep_off(inputs=(image.path for image in folder.images))
    inspections = inspect_files(
        [image.path for image in folder.images],
        root=folder.root,
        cache_dir=cache_dir,
    )
    copies = task == "multilabel" and not folder.by_rows
    if copies:
        folder = with_labels_of_copies(folder, inspections)
    folder = readable_folder(folder, inspections, on_bad_image=on_bad_image)
    folder = without_copies(folder) if copies else folder
    folder = assign_splits(folder, settings, together=groups_with_duplicates(folder.images))
    if written is not None:
        with written.writing() as beside:
            write_manifest(beside, folder)
    _print_summary(folder)
    if written is not None:
        print(f"written to {written.path}; use it with --data.manifest {written.path}")
    return folder


def _found(
    data: Path,
    manifest: Where | None,
    previous: Where | None,
    group_by: str | None,
    *,
    outside: bool,
    task: TaskOfData,
    label_columns: Sequence[str] | None,
) -> ImageFolder:
    """The images, each with its group and the side that it had."""
    from finetune.data.found_images import read_images
    from finetune.data.groups import groups_by_pattern
    from finetune.data.manifest import manifest_columns, read_manifest, with_previous

    columns = [] if manifest is None else manifest_columns(manifest)
    folder = read_images(
        data,
        manifest,
        allow_outside=outside,
        group_column=group_by if group_by is not None and group_by in columns else "group",
        task=task,
        label_columns=label_columns,
    )
    if group_by is not None and group_by not in columns:
        folder = groups_by_pattern(folder, group_by)
    if previous is not None:
        folder = with_previous(
            folder,
            read_manifest(
                previous,
                folder.root,
                allow_outside=outside,
                task="multilabel" if folder.has_label_sets else task,
            ),
        )
    return folder


def _print_summary(folder: ImageFolder) -> None:
    from collections import Counter

    sides = Counter(image.split for image in folder.images)
    counts = ", ".join(f"{sides[side]} {side}" for side in ("train", "val", "test") if sides[side])
    folds = Counter(image.fold for image in folder.images if image.fold is not None)
    groups = len({image.group for image in folder.images if image.group is not None})
    of_what = f"of {len(folder.class_names)} classes"
    if folder.has_numbers:
        of_what = f"with a number each ({folder.class_names[0]})"
    print(f"{len(folder.images)} images {of_what}: {counts}")
    if folds:
        print(f"folds: {', '.join(str(folds[fold]) for fold in sorted(folds))} images")
    if groups:
        print(f"groups: {groups}, each on one side")
