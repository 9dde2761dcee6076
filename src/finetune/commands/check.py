"""``finetune check``: what is wrong with a folder of images, before anything is trained."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, replace
from json import dumps
from typing import TYPE_CHECKING, Any, Literal

from finetune.commands import folder_options as options
from finetune.commands.guest import Where
from finetune.commands.terminal import on_terminal, shown_in_one_line
from finetune.commands.verb import run, verb
from finetune.spec.labels import indexes

if TYPE_CHECKING:
    from finetune.data.findings import Finding
    from finetune.data.folder import ImageFolder
    from finetune.data.inspection import Inspection

ALL_WELL, SOMETHING_WRONG = 0, 1
SHOWN = 20  # of each kind, where not all are asked for


def main(arguments: list[str]) -> int:
    """Check a folder; 0 when all is well, 1 when something would make a figure wrong."""
    findings = run(check, arguments)
    wrong = any(finding.severity == "error" for finding in findings)
    return SOMETHING_WRONG if wrong else ALL_WELL


@verb
def check(
    data: Where,
    *,
    manifest: options.Manifest = None,
    allow_outside: options.AllowOutside = False,
    task: options.Task = "auto",
    label_columns: options.LabelColumns = None,
    duplicates: Literal["exact", "near"] = "exact",
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_decoding_mb: options.MaxDecodingMb = options.MAX_DECODING_MB,
    cache_dir: options.CacheDir = None,
    all: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> list[Finding]:
    """Open every image of a folder and say what is wrong, why, and what to do.

    Exit code 0: all is well; 1: something would make a figure wrong (a leak between splits, a class
    missing from train, an unreadable file); 2: a wrong call.

    Args:
        data: DIR/<class>/... or DIR/train|val|test/<class>/..., or shards: 'x{0..9}.tar', x.parquet
        manifest: CSV with path, label and perhaps split and group, which decides instead.
        allow_outside: accept files of the manifest outside DIR.
        task: whether a cell of the manifest is one class, several labels or a number; auto: one of
            the first two, as it has it.
        label_columns: columns of the manifest, one a label, with 1, 0 or nothing (not known); or
            the one of numbers.
        duplicates: equal files only, or also images that look the same.
        max_pixels: refuse images with more pixels, at least 1.
        max_decoding_mb: refuse images that take more memory to decode, in MiB.
        cache_dir: instead of the platform's cache folder.
        all: print every finding, however many.
        json: print the same for programs.
        quiet: print nothing.

    Returns:
        What is worth knowing, each with its ``path``, ``severity``, ``problem`` and ``remedy``. One
        of the severity ``error`` would make a figure wrong.

    Raises:
        DataError: no folder of images.
    """
    from finetune.data.fetched_shards import brought_here
    from finetune.data.found_images import read_images
    from finetune.data.health import check_folder
    from finetune.data.inspection import inspect_files
    from finetune.data.label_folders import with_labels_of_copies
    from finetune.data.manifest import unlisted_images

    folder = read_images(
        brought_here(data, cache_dir),
        manifest,
        allow_outside=allow_outside,
        task=task,
        label_columns=label_columns,
    )
    if manifest is not None:
        folder = replace(folder, unused=(*folder.unused, *unlisted_images(folder)))
    inspections = inspect_files(
        [image.path for image in folder.images],
        root=folder.root,
        max_pixels=max_pixels,
        max_decoding_mb=max_decoding_mb,
        perceptual=duplicates == "near",
        cache_dir=cache_dir,
    )
    if task == "multilabel" and not folder.by_rows:
        folder = with_labels_of_copies(folder, inspections)
    findings = check_folder(folder, inspections, duplicates=duplicates)
    if json:
        print(dumps(_as_values(folder, inspections, findings), ensure_ascii=True, indent=2))
    else:
        _print_report(folder, inspections, findings, everything=all)
    return findings


def _as_values(
    folder: ImageFolder, inspections: list[Inspection], findings: list[Finding]
) -> dict[str, Any]:
    formats = Counter(f"{each.format} {each.mode}" for each in inspections if each.format)
    return {
        "root": str(folder.root),
        "images": len(folder.images),
        "class_names": list(folder.class_names),
        "counts": _counts(folder),
        "formats": dict(formats.most_common()),
        "errors": sum(finding.severity == "error" for finding in findings),
        "warnings": sum(finding.severity == "warning" for finding in findings),
        "findings": [{**asdict(finding), "path": str(finding.path)} for finding in findings],
    }


def _counts(folder: ImageFolder) -> dict[str, dict[str, int]]:
    """``{"train": {"cat": 12, ...}, ...}``; an unsplit folder has the one key ``unsplit``."""
    counts: dict[str, dict[str, int]] = {}
    for image in folder.images:
        split = counts.setdefault(image.split or "unsplit", dict.fromkeys(folder.class_names, 0))
        for index in indexes(image.label):
            split[folder.class_names[index]] += 1
    return counts


def _print_report(
    folder: ImageFolder,
    inspections: list[Inspection],
    findings: list[Finding],
    *,
    everything: bool,
) -> None:
    from rich.console import Console
    from rich.markup import escape

    # On a terminal directly, for its colours; what files are called is escaped here.
    stream = sys.__stdout__ if on_terminal() else None
    console = Console(file=stream, soft_wrap=True, highlight=False)
    root = escape(shown_in_one_line(str(folder.root)))
    console.print(f"[bold]{root}[/]: {_headline(folder, inspections)}")
    console.print(_count_table(folder))
    for severity, style in (("error", "red"), ("warning", "yellow"), ("note", "dim")):
        chosen = [finding for finding in findings if finding.severity == severity]
        if not chosen:
            continue
        console.print(f"\n[bold {style}]{len(chosen)} {severity}{'s' * (len(chosen) > 1)}[/]")
        listed = chosen if everything else _some_of_each_kind(chosen)
        for finding in listed:
            console.print(f"  {escape(shown_in_one_line(_line(folder, finding)))}")
        if hidden := len(chosen) - len(listed):
            console.print(f"  ... and {hidden} more; see them with --all")
    wrong = any(finding.severity == "error" for finding in findings)
    verdict = "[red]errors would make figures wrong[/]" if wrong else "[green]all is well[/]"
    if not wrong and any(finding.severity == "warning" for finding in findings):
        verdict = "[green]no errors[/]; the warnings deserve a look"
    console.print(f"\n{verdict}")
    sys.stdout.flush()


def _headline(folder: ImageFolder, inspections: list[Inspection]) -> str:
    readable = [each for each in inspections if each.problem is None]
    classes = len(folder.class_names)
    text = f"{len(folder.images)} images, {classes} class{'es' * (classes != 1)}"
    if folder.has_numbers:
        text = f"{len(folder.images)} images with a number each ({folder.class_names[0]})"
    if readable:
        shortest = sorted(min(each.width, each.height) for each in readable)
        text += (
            f", short sides {shortest[0]} to {shortest[-1]} pixels "
            f"(median {shortest[len(shortest) // 2]})"
        )
    return text


def _count_table(folder: ImageFolder) -> Any:
    from rich.table import Table
    from rich.text import Text

    counts = _counts(folder)
    table = Table("class", box=None, pad_edge=False)
    for split in counts:
        table.add_column(split, justify="right")
    for name in folder.class_names:
        table.add_row(
            Text(shown_in_one_line(name)), *(str(counts[split][name]) for split in counts)
        )
    table.add_row("all", *(str(sum(counts[split].values())) for split in counts), style="bold")
    return table


def _line(folder: ImageFolder, finding: Finding) -> str:
    path = finding.path
    name = path.relative_to(folder.root) if path.is_relative_to(folder.root) else path
    place = "" if path == folder.root else f"{name}: "
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{place}{finding.problem}{remedy}"


def _some_of_each_kind(findings: list[Finding]) -> list[Finding]:
    seen: Counter[str] = Counter()
    chosen = []
    for finding in findings:
        seen[finding.kind] += 1
        if seen[finding.kind] <= SHOWN:
            chosen.append(finding)
    return chosen
