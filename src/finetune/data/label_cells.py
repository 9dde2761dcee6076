"""What the cells of a manifest's column ``label`` say: one class, or several labels an image.

``red|round`` has both labels, an empty cell has none, and of ``?small`` it is not known. Or there
is a column for each label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.data.folder import ImageFolder
from finetune.data.walk import normal_name
from finetune.errors import ManifestError
from finetune.spec.choices import TaskOfData
from finetune.spec.images import label_counts
from finetune.spec.labels import NOT_KNOWN, SEPARATOR, Label

Cell = tuple[str, str]  # its text, and where it stands


def read_cells(
    cells: Sequence[Cell], task: TaskOfData, further: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[Label]]:
    """The names, sorted by code point, and the label of each image.

    Args:
        cells: of all images.
        task: ``auto`` takes cells for several labels where one of them has the sign between them.
        further: labels that there are, also where no cell names them.

    Raises:
        ManifestError: no label where there must be one, or a cell that contradicts itself.
    """
    several = any(SEPARATOR in text for text, _ in cells)
    if further or task == "multilabel" or (task == "auto" and several):
        return _label_sets(cells, further)
    for text, place in cells:
        if not text:
            raise ManifestError(
                f"Expected a label in {place}, found none; remove the row or label it; with "
                "--data.task multilabel it means that the image has none of the labels."
            )
    names = sorted({text for text, _ in cells})
    label_of = {name: label for label, name in enumerate(names)}
    return tuple(names), [label_of[text] for text, _ in cells]


def cell_of_columns(row: Mapping[str, str], columns: Sequence[str], place: str) -> str:
    """One column a label as one cell: 1 is had, 0 is not, and empty or ``?`` is not known.

    Raises:
        ManifestError: anything else.
    """
    marks = {"1": "", "": NOT_KNOWN, NOT_KNOWN: NOT_KNOWN}
    parts = []
    for name in columns:
        text = row[name].strip()
        if text not in (*marks, "0"):
            raise ManifestError(
                f"Expected 0, 1 or nothing in the label column {name!r} in {place}, found "
                f"{text[:40]!r}; correct the cell."
            )
        if text != "0":
            parts.append(marks[text] + normal_name(name))
    return SEPARATOR.join(parts)


def checked_columns(columns: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    """Names of label columns as they are.

    Raises:
        ManifestError: one is there twice, means something else, or cannot be a label's name.
    """
    for name in columns:
        if name in taken or columns.count(name) > 1 or SEPARATOR in name or name[:1] == NOT_KNOWN:
            raise ManifestError(
                f"Expected label columns that are there once, have no {SEPARATOR!r}, no "
                f"{NOT_KNOWN!r} in front and another name than {', '.join(taken)}, found {name!r}; "
                "rename it."
            )
    return tuple(columns)


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
                f"known ({NOT_KNOWN}{name}) or not had; add images that have it, or take it out."
            )


def _label_sets(
    cells: Sequence[Cell], further: Sequence[str]
) -> tuple[tuple[str, ...], list[Label]]:
    marked = [_marks(text, place) for text, place in cells]
    names = sorted({name for marks in marked for name in marks} | set(map(normal_name, further)))
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
