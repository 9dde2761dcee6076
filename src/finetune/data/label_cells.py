"""What the cells of a manifest's column ``label`` say: one class, or several labels an image.

``red|round`` has both labels, an empty cell has none, and of ``?small`` it is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.folder import ImageFolder
from finetune.errors import ImageFolderError, ManifestError
from finetune.spec.choices import TaskOfData
from finetune.spec.images import label_counts
from finetune.spec.labels import NOT_KNOWN, SEPARATOR, Label

Cell = tuple[str, str]  # its text, and where it stands


def read_cells(cells: Sequence[Cell], task: TaskOfData) -> tuple[tuple[str, ...], list[Label]]:
    """The names, sorted by code point, and the label of each image.

    Args:
        cells: of all images.
        task: ``auto`` takes cells for several labels where one of them has the sign between them.

    Raises:
        ManifestError: no label where there must be one, or a cell that contradicts itself.
    """
    several = any(SEPARATOR in text for text, _ in cells)
    if task == "multilabel" or (task == "auto" and several):
        return _label_sets(cells)
    for text, place in cells:
        if not text:
            raise ManifestError(
                f"Expected a label in {place}, found none; remove the row or label it; with "
                "--data.task multilabel it means that the image has none of the labels."
            )
    names = sorted({text for text, _ in cells})
    label_of = {name: label for label, name in enumerate(names)}
    return tuple(names), [label_of[text] for text, _ in cells]


def refuse_classes(folder: ImageFolder, task: TaskOfData) -> None:
    """Refuse class folders where several labels an image are asked for.

    Raises:
        ImageFolderError: a folder says one class of each image.
    """
    if task == "multilabel" and not folder.has_label_sets:
        raise ImageFolderError(
            f"Expected several labels an image, found class folders in {folder.root}, which say "
            "one; give --data.manifest with a column path and a column label such as red|round."
        )


def check_labels_had(folder: ImageFolder) -> None:
    """Refuse a label that no image has: nothing could be learned of it.

    Raises:
        ManifestError: it is named as not known alone.
    """
    had = label_counts(folder.images)
    for index, name in enumerate(folder.class_names):
        if not had[index]:
            raise ManifestError(
                f"Expected each label to be had by at least one image, found {name!r} only as not "
                f"known ({NOT_KNOWN}{name}); add images that have it, or take it out."
            )


def _label_sets(cells: Sequence[Cell]) -> tuple[tuple[str, ...], list[Label]]:
    marked = [_marks(text, place) for text, place in cells]
    names = sorted({name for marks in marked for name in marks})
    labels: list[Label] = []
    for marks, (_, place) in zip(marked, cells, strict=True):
        if names and all(marks.get(name) == -1 for name in names):
            raise ManifestError(
                f"Expected something known of each image, found only labels with {NOT_KNOWN!r} in "
                f"{place}; remove the row."
            )
        labels.append(tuple(marks.get(name, 0) for name in names))
    return tuple(names), labels


def _marks(text: str, place: str) -> dict[str, int]:
    """1 or -1 (not known) for each label that a cell names."""
    marks: dict[str, int] = {}
    for part in text.split(SEPARATOR) if text else ():
        known = not part.startswith(NOT_KNOWN)
        name = part.removeprefix(NOT_KNOWN).strip()
        if not name:
            raise ManifestError(
                f"Expected labels with {SEPARATOR!r} between them in {place}, found {text[:80]!r}, "
                "where one is missing; correct the cell."
            )
        value = 1 if known else -1
        if marks.setdefault(name, value) != value:
            raise ManifestError(
                f"Expected each label once in {place}, found {name!r} as had and as not known; "
                "keep one of them."
            )
    return marks
