"""CSV manifests: which file has which label, and on which side it stands.

Columns ``path`` and ``label``, and optionally ``split``, ``fold``, ``group`` and ``hash``, in any
order; other columns are not read. ``split.csv`` in a run folder is one.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from finetune.data.assignment import picture_keys, relative_names
from finetune.data.folder import (
    SPLIT_FOLDERS,
    ImageFolder,
    LabelledImage,
    Split,
    UnusedFile,
    normal_name,
    readable_suffixes,
)
from finetune.errors import ManifestError

COLUMNS = ("path", "label", "split", "fold", "group", "hash")


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    label: str
    split: Split | None
    fold: int | None
    group: str | None
    hash: str


def read_manifest(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    allow_outside: bool = False,
    group_column: str = "group",
) -> ImageFolder:
    """The pictures that a manifest lists, as :func:`finetune.data.folder.scan_folder` gives them.

    Relative paths start at the CSV's folder, or, where the first one is not there, at ``root``.

    Args:
        path: the CSV, UTF-8.
        root: the folder of pictures.
        allow_outside: accept files that are not below ``root``.
        group_column: whose equal values keep pictures on one side.

    Raises:
        ManifestError: a missing column or file, an unknown split, a file with two labels, ...
    """
    path, root = Path(path), Path(root)
    rows = list(_read_rows(path, root, group_column))
    if not rows:
        raise ManifestError(f"Expected pictures in {path}, found only a header.")
    if not allow_outside:
        _refuse_outside(path, rows, root)
    rows, unused = _without_repeats(path, rows)
    missing = [row.path for row in rows if not row.path.is_file()]
    if missing:
        raise ManifestError(
            f"Expected all files of {path} to exist, found {len(missing)} missing, the first "
            f"{missing[0]}; correct the paths or remove these rows."
        )
    class_names = sorted({row.label for row in rows})
    label_of = {name: label for label, name in enumerate(class_names)}
    images = [
        LabelledImage(row.path, label_of[row.label], row.group, row.split, row.fold, row.hash)
        for row in rows
    ]
    order: dict[Split | None, int] = {"train": 0, "val": 1, "test": 2, None: 3}
    images.sort(key=lambda image: (order[image.split], image.label))
    return ImageFolder(
        root=root,
        class_names=tuple(class_names),
        images=tuple(images),
        unused=tuple(unused),
    )


def write_manifest(path: str | os.PathLike[str], folder: ImageFolder) -> None:
    """Write a folder's pictures with their sides; a file at ``path`` is replaced as a whole.

    Paths are relative to the folder's root (absolute where a picture is not below it).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = relative_names(folder.root, folder.images)
    with tempfile.NamedTemporaryFile(
        "w",
        dir=path.parent,
        prefix=f".{path.name}-",
        delete=False,
        newline="",
        encoding="utf-8",
        errors="surrogateescape",
    ) as file:
        try:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for name, image in zip(names, folder.images, strict=True):
                label = folder.class_names[image.label]
                fold = "" if image.fold is None else image.fold
                extra = (image.split or "", fold, image.group or "", image.id)
                writer.writerow((name, label, *extra))
            file.close()
            os.chmod(file.name, 0o644)  # temporary files are private
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def with_previous(folder: ImageFolder, previous: ImageFolder) -> ImageFolder:
    """The folder with the sides, folds and groups that an earlier split gave its pictures."""
    settled = dict(zip(picture_keys(previous.root, previous.images), previous.images, strict=True))
    images = []
    for key, image in zip(picture_keys(folder.root, folder.images), folder.images, strict=True):
        old = settled.get(key)
        if old is not None:
            group = image.group or old.group
            image = replace(image, group=group, split=old.split, fold=old.fold)
        images.append(image)
    return replace(folder, images=tuple(images))


def unlisted_pictures(folder: ImageFolder) -> list[UnusedFile]:
    """Files below a manifest's root that look like pictures and that it does not list."""
    listed = {os.path.abspath(image.path) for image in folder.images}
    unlisted = []
    for place, folders, files in os.walk(os.path.abspath(folder.root)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(place, name)
            is_picture = os.path.splitext(name)[1].lower() in readable_suffixes()
            if is_picture and not name.startswith(".") and path not in listed:
                unlisted.append(UnusedFile(Path(path), "not in the manifest"))
    return unlisted


def manifest_columns(path: str | os.PathLike[str]) -> list[str]:
    """The names in a manifest's first line.

    Raises:
        ManifestError: it cannot be read.
    """
    with _opened(Path(path)) as file:
        return list(csv.DictReader(file).fieldnames or [])


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        file = path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ManifestError(f"Expected a CSV manifest at {path}: {error.strerror}.") from error
    with file:
        try:
            yield file
        except csv.Error as error:
            raise ManifestError(
                f"Expected a CSV manifest at {path}, found something else ({error}); save it as "
                "CSV with UTF-8."
            ) from error


def _read_rows(path: Path, root: Path, group_column: str) -> Iterable[_Row]:
    with _opened(path) as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        lacking = [name for name in ("path", "label") if name not in columns]
        if lacking:
            raise ManifestError(
                f"Expected the columns path,label[,split][,fold][,group] in {path}, found "
                f"{_shown(columns)}; {_remedy(columns, lacking)}."
            )
        base: Path | None = None
        for number, row in enumerate(reader, start=2):
            if not row["path"]:
                raise ManifestError(f"Expected a path in line {number} of {path}, found none.")
            base = base or _base(path.parent, root, row["path"])
            yield _parse_row(row, base, group_column, f"line {number} of {path}")


def _shown(columns: Sequence[str]) -> str:
    """The first line, short, and without what no terminal can print."""
    text = ",".join(columns).encode("ascii", "backslashreplace").decode()
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"{printable[:60]}..." if len(printable) > 60 else printable or "an empty file"


def _remedy(columns: Sequence[str], lacking: Sequence[str]) -> str:
    """What to do about a first line without the columns, as spreadsheets write it."""
    line = ",".join(columns)
    if any("\udc80" <= letter <= "\udcff" or letter == "\0" for letter in line):
        return "save it as CSV with UTF-8"
    if len(columns) == 1 and any(mark in line for mark in ";\t"):
        return "save it with commas between the columns"
    return f"add {' and '.join(lacking)}"


def _base(csv_folder: Path, root: Path, first: str) -> Path:
    return csv_folder if (csv_folder / first).exists() else root


def _parse_row(row: Mapping[str, str | None], base: Path, group_column: str, place: str) -> _Row:
    label = normal_name((row["label"] or "").strip())
    if not label:
        raise ManifestError(f"Expected a label in {place}, found none; remove the row or label it.")
    split_name = (row.get("split") or "").strip()
    split = SPLIT_FOLDERS.get(split_name.casefold())
    if split_name and split is None:
        raise ManifestError(
            f"Expected split to be train, val, test or empty in {place}, found {split_name!r}."
        )
    fold = (row.get("fold") or "").strip()
    if fold and not fold.isdecimal():
        raise ManifestError(f"Expected fold to be 0, 1, 2, ... in {place}, found {fold!r}.")
    return _Row(
        path=base / str(row["path"]),
        label=label,
        split=split,
        fold=int(fold) if fold else None,
        group=(row.get(group_column) or "").strip() or None,
        hash=(row.get("hash") or "").strip(),
    )


def _refuse_outside(path: Path, rows: list[_Row], root: Path) -> None:
    prefix = os.path.join(os.path.abspath(root), "")
    outside = [row.path for row in rows if not os.path.abspath(row.path).startswith(prefix)]
    if outside:
        raise ManifestError(
            f"Expected the files of {path} below {root}, found {len(outside)} elsewhere, the first "
            f"{outside[0]}; name another root, or allow files outside it."
        )


def _without_repeats(path: Path, rows: list[_Row]) -> tuple[list[_Row], list[UnusedFile]]:
    first: dict[str, _Row] = {}
    kept: list[_Row] = []
    unused: list[UnusedFile] = []
    for row in rows:
        known = first.setdefault(os.path.abspath(row.path), row)
        if known is row:
            kept.append(row)
        elif (known.label, known.split) == (row.label, row.split):
            unused.append(UnusedFile(row.path, "listed twice in the manifest"))
        else:
            raise ManifestError(
                f"Expected one label and one split a file in {path}, found {row.path} as "
                f"{known.label!r} ({known.split}) and {row.label!r} ({row.split})."
            )
    return kept, unused
