"""CSV manifests: which file has which label, and on which side it stands.

Columns ``path`` and ``label`` (or one for each label), and optionally ``split``, ``fold``,
``group`` and ``hash``, in any order; other columns are not read, but that of the numbers where a
number is predicted. ``split.csv`` in a run folder is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from finetune.csv_table import CsvTable, csv_text, read_csv_table
from finetune.data.assignment import image_keys, relative_names
from finetune.data.folder import SPLIT_FOLDERS, ImageFolder, LabelledImage, Split
from finetune.data.image_bytes import is_there
from finetune.data.label_cells import cell_of_columns, checked_columns, read_cells
from finetune.data.number_cells import LABEL, NUMBERS, number_column, read_numbers
from finetune.data.walk import UnusedFile, images_below, normal_name
from finetune.errors import ManifestError
from finetune.files import write_text
from finetune.spec.choices import TaskOfData
from finetune.spec.images import by_side
from finetune.spec.labels import cell, indexes, moved

COLUMNS = ("path", "label", "split", "fold", "group", "hash")


class Line(NamedTuple):
    """What is said of an image: its file, the cells by column, and where that stands."""

    path: Path
    cells: Mapping[str, str]
    place: str


@dataclass(frozen=True, slots=True)
class Row:
    """The same, understood; the label is a cell's text still."""

    path: Path
    label: str
    split: Split | None
    fold: int | None
    group: str | None
    hash: str
    place: str = field(compare=False)


def read_manifest(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    allow_outside: bool = False,
    group_column: str = "group",
    task: TaskOfData = "auto",
    label_columns: Sequence[str] = (),
) -> ImageFolder:
    """The images that a manifest lists, as :func:`finetune.data.folder.scan_folder` gives them.

    Relative paths start at the CSV's folder, or, where the first one is not there, at ``root``.

    Args:
        path: the CSV, UTF-8.
        root: the folder of images.
        allow_outside: accept files that are not below ``root``.
        group_column: whose equal values keep images on one side.
        task: whether a cell is one class or several labels, see :mod:`finetune.data.label_cells`,
            or a number, see :mod:`finetune.data.number_cells`; by default several labels wherever
            one of the cells has the sign between them.
        label_columns: one column a label, with 1, 0 or nothing (not known), instead of ``label``;
            or the one of numbers.

    Raises:
        ManifestError: a missing column or file, an unknown split, a file with two labels, ...
    """
    path, root = Path(path), Path(root)
    labels_in = checked_columns(label_columns, COLUMNS)
    if task == NUMBERS:
        found = labels_in or manifest_columns(path)
        labels_in = (number_column(found, (*COLUMNS, group_column), str(path)),)
    rows = [
        parse_row(line, group_column, labels_in, numbers=task == NUMBERS)
        for line in _read_lines(path, root, labels_in)
    ]
    if not rows:
        raise ManifestError(f"Expected images in {path}, found only a header.")
    if not allow_outside:
        _refuse_outside(path, rows, root)
    missing = [file for file in dict.fromkeys(row.path for row in rows) if not is_there(file)]
    if missing:
        raise ManifestError(
            f"Expected all files of {path} to exist, found {len(missing)} missing, the first "
            f"{missing[0]}; correct the paths or remove these rows."
        )
    return as_folder(rows, path, root, task, labels_in)


def as_folder(
    rows: list[Row],
    source: str | Path,
    root: Path,
    task: TaskOfData,
    labels_in: Sequence[str],
) -> ImageFolder:
    """The images that rows are about, with labels as their cells say.

    Raises:
        ManifestError: a file that is said to be two things, or a cell that is no label.
    """
    rows, unused = _without_repeats(source, rows)
    cells = [(row.label, row.place) for row in rows]
    class_names, labels = (
        (tuple(labels_in), read_numbers(cells))
        if task == NUMBERS
        else read_cells(cells, task, labels_in)
    )
    images = [
        LabelledImage(row.path, label, row.group, row.split, row.fold, row.hash)
        for row, label in zip(rows, labels, strict=True)
    ]
    images.sort(key=by_side)
    return ImageFolder(
        root=root,
        class_names=class_names,
        images=tuple(images),
        unused=tuple(unused),
        by_rows=True,
    )


def write_manifest(path: str | os.PathLike[str], folder: ImageFolder) -> None:
    """Write a folder's images with their sides; a file at ``path`` is replaced as a whole.

    Paths are relative to the folder's root (absolute where an image is not below it).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = relative_names(folder.root, folder.images)
    column = folder.class_names[0] if folder.has_numbers else LABEL
    rows = [
        (name, cell(i.label, folder.class_names), i.split, i.fold, i.group, i.id)
        for name, i in zip(names, folder.images, strict=True)
    ]
    write_text(path, csv_text([column if name == LABEL else name for name in COLUMNS], rows))


def with_previous(folder: ImageFolder, previous: ImageFolder) -> ImageFolder:
    """The folder with the sides, folds and groups that an earlier split gave its images."""
    earlier = dict(zip(image_keys(previous.root, previous.images), previous.images, strict=True))
    images = []
    for key, image in zip(image_keys(folder.root, folder.images), folder.images, strict=True):
        old = earlier.get(key)
        if old is not None:
            group = image.group or old.group
            image = replace(image, group=group, split=old.split, fold=old.fold)
        images.append(image)
    return replace(folder, images=tuple(images))


def with_more(folder: ImageFolder, more: ImageFolder) -> ImageFolder:
    """The folder with further images; of a file that both have, the further label counts."""
    there = {os.path.abspath(image.path) for image in more.images}
    kept = [image for image in folder.images if os.path.abspath(image.path) not in there]
    had = {folder.class_names[index] for image in kept for index in indexes(image.label)}
    names = tuple(sorted(had.union(more.class_names)))
    positions = [names.index(name) if name in had else -1 for name in folder.class_names]
    images = [replace(i, label=moved(i.label, positions, len(names))) for i in kept]
    images += more.with_class_names(names).images
    return replace(folder, class_names=names, images=tuple(sorted(images, key=by_side)))


def unlisted_images(folder: ImageFolder) -> list[UnusedFile]:
    """Files below a manifest's root that look like images and that it does not list."""
    listed = {os.path.abspath(image.path) for image in folder.images}
    return [
        UnusedFile(path, "not in the manifest")
        for path in images_below(folder.root)
        if os.path.abspath(path) not in listed
    ]


def manifest_columns(path: str | os.PathLike[str]) -> list[str]:
    """The names in a manifest's first line.

    Raises:
        ManifestError: it cannot be read.
    """
    table = read_csv_table(path, known=COLUMNS, required=("path",), error=ManifestError)
    return list(table.columns)


def _table(path: Path, labels_in: Sequence[str]) -> CsvTable:
    """The file; labels are in these columns, or where there are none in the one of that name."""
    known, needed = (*COLUMNS, *labels_in), labels_in or (LABEL,)
    return read_csv_table(path, known=known, required=("path", *needed), error=ManifestError)


def _read_lines(path: Path, root: Path, labels_in: Sequence[str]) -> Iterator[Line]:
    table = _table(path, labels_in)
    base: Path | None = None
    for number, cells in table.rows:
        if not cells["path"]:
            raise ManifestError(f"Expected a path in line {number} of {path}, found none.")
        if base is None and not os.path.isabs(cells["path"]):
            base = path.parent if is_there(path.parent / cells["path"]) else root
        file = (base or root) / cells["path"]
        if "\\" in cells["path"] and not file.exists():  # as Windows writes them
            file = (base or root) / cells["path"].replace("\\", "/")
        yield Line(file, cells, f"line {number} of {path}")


def parse_row(line: Line, group_column: str, labels_in: Sequence[str], *, numbers: bool) -> Row:
    """One line; names are exact, blanks at either end included.

    Raises:
        ManifestError: a split, a fold or the mark of a label that is none.
    """
    cells, place = line.cells, line.place
    if numbers or not labels_in:
        label = normal_name(cells[labels_in[0] if labels_in else LABEL])
    else:
        label = cell_of_columns(cells, labels_in, place)
    split_name = cells.get("split", "").strip()
    split = SPLIT_FOLDERS.get(split_name.casefold())
    if split_name and split is None:
        raise ManifestError(
            f"Expected split to be train, val, test or empty in {place}, found {split_name!r}."
        )
    fold = cells.get("fold", "").strip()
    if fold and not (fold.isascii() and fold.isdecimal() and len(fold) <= 6):
        raise ManifestError(f"Expected fold to be 0, 1, 2, ... in {place}, found {fold[:20]!r}.")
    return Row(
        path=line.path,
        label=label,
        split=split,
        fold=int(fold) if fold else None,
        group=cells.get(group_column) or None,
        hash=cells.get("hash", "").strip(),
        place=place,
    )


def _refuse_outside(path: Path, rows: list[Row], root: Path) -> None:
    prefix = os.path.join(os.path.abspath(root), "")
    outside = [row.path for row in rows if not os.path.abspath(row.path).startswith(prefix)]
    if outside:
        raise ManifestError(
            f"Expected the files of {path} below {root}, found {len(outside)} elsewhere, the first "
            f"{outside[0]}; name another root, or allow files outside it."
        )


def _without_repeats(source: str | Path, rows: list[Row]) -> tuple[list[Row], list[UnusedFile]]:
    first: dict[str, Row] = {}
    kept: list[Row] = []
    unused: list[UnusedFile] = []
    for row in rows:
        known = first.setdefault(os.path.abspath(row.path), row)
        if known is row:
            kept.append(row)
        elif replace(row, path=known.path) == known:
            unused.append(UnusedFile(row.path, "listed twice in the manifest"))
        else:
            raise ManifestError(
                f"Expected one label, split, fold and group a file in {source}, found {row.path} "
                f"as {_said(known)} and as {_said(row)}; keep one of the rows."
            )
    return kept, unused


def _said(row: Row) -> str:
    further = [str(each) for each in (row.split, row.fold, row.group) if each is not None]
    return repr(row.label) + (f" ({', '.join(further)})" if further else "")
