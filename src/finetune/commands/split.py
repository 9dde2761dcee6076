"""``finetune split``: write who stands on which side into a CSV manifest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.outputs import TABLES, add_output, checked_output
from finetune.commands.parsing import Parser, whole_number

if TYPE_CHECKING:
    from finetune.data.assignment import SplitSettings
    from finetune.data.folder import ImageFolder


def main(arguments: list[str]) -> int:
    """Split a folder and write the manifest."""
    options = _parser().parse_args(arguments)
    output = checked_output(
        options.output,
        endings=TABLES,
        overwrite=options.overwrite,
        inputs=[options.manifest, options.previous],
        images=[options.folder],
        hint=f"keep its sides with --previous {options.output}, ",
    )
    from finetune.data.assignment import SplitSettings
    from finetune.data.manifest import write_manifest

    settings = SplitSettings(
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        seed=options.seed,
        folds=options.folds,
    )
    found = _found(options)
    output.keep_off(inputs=(image.path for image in found.images))
    folder = _split(found, settings, options)
    with output.writing() as beside:
        write_manifest(beside, folder)
    _print_summary(folder, output.path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="finetune split",
        description="Decide which images are for training, validation and testing, stratified by "
        "class, and write it as a CSV that --data.manifest reads. The folder stays as it is.",
    )
    parser.add_argument("folder", help="DIR/<class>/... or DIR/train|val|test/<class>/...")
    add_output(parser, "the CSV", metavar="FILE.csv")
    parser.add_argument("--manifest", help="CSV path,label[,group] to split instead of the folder")
    parser.add_argument(
        "--allow-outside", action="store_true", help="accept files of the manifest outside DIR"
    )
    parser.add_argument(
        "--previous", help="an earlier CSV: its images keep their sides, new ones are added"
    )
    for side in ("val", "test"):
        parser.add_argument(
            f"--{side}-fraction",
            type=float,
            default=0.2,
            help=f"share held out as {side} where nothing says which, at least 0 and below 1",
        )
    parser.add_argument(
        "--folds",
        type=whole_number(2),
        help="divide everything but test into this many folds as well, at least 2",
    )
    parser.add_argument(
        "--group-by",
        help="regular expression on the path below DIR, or the name of a column of --manifest: "
        "images with equal values stay on one side",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="what to do with files that cannot be read",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split")
    parser.add_argument("--cache-dir", help="instead of the platform's cache folder")
    return parser


def _found(options: argparse.Namespace) -> ImageFolder:
    """The images, each with its group and the side that it had."""
    from finetune.data.folder import scan_folder
    from finetune.data.groups import groups_by_pattern
    from finetune.data.manifest import manifest_columns, read_manifest, with_previous

    columns = [] if options.manifest is None else manifest_columns(options.manifest)
    outside = options.allow_outside
    if options.manifest is None:
        folder = scan_folder(options.folder)
    elif options.group_by in columns:
        folder = read_manifest(
            options.manifest, options.folder, allow_outside=outside, group_column=options.group_by
        )
    else:
        folder = read_manifest(options.manifest, options.folder, allow_outside=outside)
    if options.group_by is not None and options.group_by not in columns:
        folder = groups_by_pattern(folder, options.group_by)
    if options.previous is not None:
        previous = read_manifest(options.previous, options.folder, allow_outside=outside)
        folder = with_previous(folder, previous)
    return folder


def _split(
    folder: ImageFolder, settings: SplitSettings, options: argparse.Namespace
) -> ImageFolder:
    from finetune.data.assignment import assign_splits
    from finetune.data.groups import groups_with_duplicates
    from finetune.data.health import readable_folder
    from finetune.data.inspection import inspect_files

    inspections = inspect_files(
        [image.path for image in folder.images],
        root=folder.root,
        cache_dir=options.cache_dir,
    )
    folder = readable_folder(folder, inspections, on_bad_image=options.on_bad_image)
    together = groups_with_duplicates(folder.images)
    return assign_splits(folder, settings, together=together)


def _print_summary(folder: ImageFolder, output: Path) -> None:
    from collections import Counter

    sides = Counter(image.split for image in folder.images)
    counts = ", ".join(f"{sides[side]} {side}" for side in ("train", "val", "test") if sides[side])
    folds = Counter(image.fold for image in folder.images if image.fold is not None)
    groups = len({image.group for image in folder.images if image.group is not None})
    print(f"{len(folder.images)} images of {len(folder.class_names)} classes: {counts}")
    if folds:
        print(f"folds: {', '.join(str(folds[fold]) for fold in sorted(folds))} images")
    if groups:
        print(f"groups: {groups}, each on one side")
    print(f"written to {output}; use it with --data.manifest {output}")
