"""What is wrong with a folder of images, file by file, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from finetune.data.assignment import classes_missing_from_train
from finetune.data.duplicates import exact_duplicates, join, near_duplicates
from finetune.data.findings import Finding, Severity
from finetune.data.folder import ImageFolder, LabelledImage
from finetune.data.inspection import Inspection
from finetune.data.outlier_checks import look_findings
from finetune.data.walk import UnusedFile
from finetune.errors import ImageError
from finetune.spec.images import label_counts
from finetune.spec.labels import cell, order

FEW_EVALUATED = 5  # fewer images of a class in val or test than this say next to nothing
IMBALANCE = 10


def check_folder(
    folder: ImageFolder,
    inspections: Sequence[Inspection],
    *,
    duplicates: Literal["exact", "near"] = "exact",
) -> list[Finding]:
    """Everything worth knowing, errors first.

    Args:
        folder: what was found, with its splits as given.
        inspections: of all its images, in order; with perceptual hashes for ``near``.
        duplicates: look for equal files only, or also for images that look the same.
    """
    readable = [
        (image, inspection)
        for image, inspection in zip(folder.images, inspections, strict=True)
        if inspection.problem is None
    ]
    findings = [
        *unreadable_files(inspections, folder.unlisted),
        *duplicate_findings(folder, inspections, near=duplicates == "near"),
        *class_findings(folder, [image for image, _ in readable]),
        *look_findings([inspection for _, inspection in readable]),
        *map(_unused, folder.unused),
    ]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def unreadable_files(
    inspections: Iterable[Inspection], unlisted: Iterable[UnusedFile] = ()
) -> list[Finding]:
    """An error for each file that is no image, damaged, or too large, and for hidden folders."""
    beyond = []
    for each in unlisted:
        remedy = "write it again" if each.path.is_file() else "change the folder's rights"
        remedy += ", or train with --data.on_bad_image skip"
        beyond.append(Finding(each.path, "unreadable", "error", each.reason, remedy))
    return beyond + [
        Finding(
            inspection.path,
            "unreadable",
            "error",
            inspection.problem,
            "remove or replace the file, or train with --data.on_bad_image skip",
        )
        for inspection in inspections
        if inspection.problem is not None
    ]


def readable_folder(
    folder: ImageFolder,
    inspections: Sequence[Inspection],
    *,
    on_bad_image: Literal["error", "skip"],
) -> ImageFolder:
    """The folder without the files that cannot be read, each image with the id of its content.

    Raises:
        ImageError: there are such files, and they are not to be skipped.
    """
    bad = unreadable_files(inspections, folder.unlisted)
    if bad and on_bad_image == "error":
        raise ImageError(
            f"Expected only readable images in {folder.root}, found {len(bad)} that are not, the "
            f"first {bad[0].path} ({bad[0].problem}); see `finetune "
            "check`, or leave them out with --data.on_bad_image skip."
        )
    pairs = zip(folder.images, inspections, strict=True)
    return replace(
        folder,
        images=tuple(
            replace(image, id=each.content_hash, stamp=each.stamp)
            for image, each in pairs
            if each.problem is None
        ),
    )


def duplicate_findings(
    folder: ImageFolder, inspections: Sequence[Inspection], *, near: bool = False
) -> list[Finding]:
    """Images that are there twice: across splits, with two labels, or merely so."""
    exact = exact_duplicates(inspections)
    findings = [_duplicate_finding(folder, group, "equal to") for group in exact]
    if near:
        first_of = {index: group[0] for group in exact for index in group}
        pairs = [
            (first_of.get(one, one), first_of.get(other, other))
            for one, other in near_duplicates(inspections)
        ]
        findings += [_duplicate_finding(folder, group, "looks like") for group in join(pairs)]
    return findings


def class_findings(folder: ImageFolder, readable: Sequence[LabelledImage]) -> list[Finding]:
    """What the numbers of images in classes and splits say."""
    return [
        *_vocabulary_findings(folder),
        *_count_findings(folder, readable),
        *_evaluation_findings(folder, readable),
    ]


def _unused(each: UnusedFile) -> Finding:
    severity: Severity = "warning" if each.expected else "note"
    return Finding(each.path, "unused", severity, f"not used: {each.reason}")


def _duplicate_finding(folder: ImageFolder, group: Sequence[int], relation: str) -> Finding:
    images = [folder.images[index] for index in group]
    paths = ", ".join(str(_below(folder.root, image.path)) for image in images[1:])
    problem = f"{relation} {paths}"
    near = "near_" if relation == "looks like" else ""
    splits = {image.split for image in images}
    labels = {image.label for image in images}
    if len(splits) > 1:
        names = " and ".join(sorted(str(split) for split in splits))
        return Finding(
            images[0].path,
            f"{near}leak",
            "error",
            f"in {names}: {problem}",
            "keep the image in one split only",
        )
    if len(labels) > 1:
        names = " and ".join(
            repr(cell(label, folder.class_names)) for label in sorted(labels, key=order)
        )
        severity: Severity = "warning" if near else "error"
        remedy = "keep the right label only"
        if not folder.has_label_sets:
            remedy += "; has the image both, say --data.task multilabel"
        return Finding(
            images[0].path,
            f"{near}contradiction",
            severity,
            f"labelled {names}: {problem}",
            remedy,
        )
    return Finding(
        images[0].path,
        f"{near}duplicate",
        "note" if near else "warning",
        problem,
        "kept on one side of every split that is made here" if not near else "",
    )


def _vocabulary_findings(folder: ImageFolder) -> Iterator[Finding]:
    root = folder.root
    for name in classes_missing_from_train(folder):
        sides = " and ".join(s for s in ("val", "test") if name in folder.classes_of(s))
        yield Finding(
            root,
            "class_missing_from_train",
            "error",
            f"class {name!r} has images in {sides} but none in train",
            "add training images, or move the class away",
        )
    for name in folder.empty_classes:
        problem = f"class folder {name!r} has no images; it is no class"
        yield Finding(root, "empty_class", "warning", problem, "add images or remove the folder")
    if len(folder.class_names) == 1 and not folder.has_numbers:
        problem = f"only one class, {folder.class_names[0]!r}"
        remedy = "put each class's images into a folder of its own"
        yield Finding(root, "one_class", "error", problem, remedy)
    for name in folder.class_names:
        if not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name):
            problem = f"the name of class {name!r} is no UTF-8"
            remedy = "rename the folder, or save the manifest as CSV with UTF-8"
            yield Finding(root, "undecodable_name", "warning", problem, remedy)
    spellings: dict[str, list[str]] = {}
    for name in folder.class_names:
        spellings.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            problem = f"classes {', '.join(map(repr, names))} differ in case or spaces only"
            yield Finding(root, "similar_names", "warning", problem, "rename if they are one class")


def _count_findings(folder: ImageFolder, readable: Sequence[LabelledImage]) -> Iterator[Finding]:
    learnt = label_counts(image for image in readable if image.split in (None, "train"))
    for label, name in enumerate(folder.class_names):
        if learnt[label] == 1:
            yield Finding(
                folder.root,
                "one_image_class",
                "warning",
                f"class {name!r} has one image to learn from",
                "add images; if it is held out nowhere, the class is not evaluated",
            )
    if learnt and max(learnt.values()) >= IMBALANCE * min(learnt.values()):
        (most, many), (least, few) = learnt.most_common(1)[0], learnt.most_common()[-1]
        yield Finding(
            folder.root,
            "imbalance",
            "warning",
            f"{many} images of {folder.class_names[most]!r}, "
            f"{few} of {folder.class_names[least]!r}",
            "look at balanced accuracy and macro-F1; consider class weights",
        )


def _evaluation_findings(
    folder: ImageFolder, readable: Sequence[LabelledImage]
) -> Iterator[Finding]:
    for split in folder.splits[1:] if "train" in folder.splits else folder.splits:
        counts = label_counts(image for image in readable if image.split == split)
        absent = [name for label, name in enumerate(folder.class_names) if not counts[label]]
        few = [
            f"{name!r} ({counts[label]})"
            for label, name in enumerate(folder.class_names)
            if 0 < counts[label] < FEW_EVALUATED
        ]
        if absent:
            yield Finding(
                folder.root,
                "class_not_evaluated",
                "warning",
                f"{split} has no images of {', '.join(map(repr, absent))}",
                f"add some, or the {split} figures say nothing about them",
            )
        if few:
            yield Finding(
                folder.root,
                "few_evaluated",
                "warning",
                f"{split} has fewer than {FEW_EVALUATED} images of {', '.join(few)}",
                "add some, or read their figures with care",
            )


def _below(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
