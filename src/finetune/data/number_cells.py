"""What the cells of a manifest's column of numbers say: one number an image, in the user's unit."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.folder import ImageFolder
from finetune.errors import ImageFolderError, ManifestError
from finetune.spec.choices import TaskOfData
from finetune.spec.labels import Label
from finetune.spec.numbers import number

NUMBERS: TaskOfData = "regression"
LABEL = "label"


def number_column(columns: Sequence[str], known: Sequence[str], place: str) -> str:
    """The column of numbers: ``label``, or else the only one that has no meaning of its own.

    Raises:
        ManifestError: none, or several.
    """
    others = [name for name in columns if name not in known]
    if LABEL not in columns and len(others) != 1:
        raise ManifestError(
            f"Expected a column {LABEL} of numbers in {place}, found {', '.join(columns)}; name "
            f"the column of numbers {LABEL}."
        )
    return LABEL if LABEL in columns else others[0]


def read_numbers(cells: Sequence[tuple[str, str]]) -> list[Label]:
    """The number in each cell, given with its place.

    Raises:
        ManifestError: an empty cell or no number, by its line.
    """
    return [_number(text, place) for text, place in cells]


def refuse_folders(folder: ImageFolder, task: TaskOfData) -> None:
    """Refuse class folders where a number an image is asked for.

    Raises:
        ImageFolderError: a folder says a class of each image.
    """
    if task == NUMBERS and not folder.has_numbers:
        raise ImageFolderError(
            f"Expected a number for each image, found class folders in {folder.root}; give "
            f"--data.manifest with a column path and a column {LABEL} of numbers."
        )


def _number(text: str, place: str) -> float:
    try:
        return number(text)
    except ValueError:
        found = repr(text[:40]) if text.strip() else "an empty cell"
        raise ManifestError(
            f"Expected a number such as 31.5 in {place}, found {found}; correct the cell or remove "
            "the row."
        ) from None
