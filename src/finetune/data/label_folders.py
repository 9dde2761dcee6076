"""Class folders as labels: an image that lies in several of them has several.

Only where ``--data.task multilabel`` asks for it; otherwise equal files with two classes contradict
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune.data.folder import ImageFolder, LabelledImage, Split
from finetune.data.inspection import Inspection
from finetune.data.walk import UnusedFile
from finetune.spec.labels import Label, several


def as_label_sets(folder: ImageFolder) -> ImageFolder:
    """Each image with the label of its folder, and none of the others."""
    if several(image.label for image in folder.images):
        return folder
    names = range(len(folder.class_names))
    images = tuple(
        replace(image, label=tuple(int(name == image.label) for name in names))
        for image in folder.images
    )
    return replace(folder, images=images)


def with_labels_of_copies(folder: ImageFolder, inspections: Sequence[Inspection]) -> ImageFolder:
    """Each image with the labels of all files of its content."""
    had: dict[str, tuple[int, ...]] = {}
    for image, seen in zip(folder.images, inspections, strict=True):
        own = _marks(image.label)
        had[seen.content_hash] = tuple(map(max, own, had.get(seen.content_hash, own)))
    images = tuple(
        image if seen.problem else replace(image, label=had[seen.content_hash])
        for image, seen in zip(folder.images, inspections, strict=True)
    )
    return replace(folder, images=images)


def without_copies(folder: ImageFolder) -> ImageFolder:
    """One file of each content and side; the others, which only said a label, are not used."""
    first: dict[tuple[str, Split | None], LabelledImage] = {}
    unused = list(folder.unused)
    for image in folder.images:
        kept = first.setdefault((image.id, image.split), image)
        if kept is not image:
            unused.append(UnusedFile(image.path, f"the same image as {kept.path}, with its labels"))
    return replace(folder, images=tuple(first.values()), unused=tuple(unused))


def _marks(label: Label) -> tuple[int, ...]:
    assert isinstance(label, tuple)
    return label
