"""CSV tables: the one strict reader of those that people and programs write drops nothing.

A cell too many (a comma in a name without quotes), a column that stands there twice, a file that is
no regular file: each is one clear error that names the line, as an editor counts them.
"""

from __future__ import annotations

import csv
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from finetune.errors import FinetuneError


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A header and its rows; names of columns that are known are in their usual spelling.

    Attributes:
        path: of the file.
        columns: as the header names them, in order.
        rows: of each the number of its (last) line, and its cells by column, exact to the blank.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_csv_table(
    path: str | os.PathLike[str],
    *,
    known: Sequence[str],
    required: Sequence[str],
    error: type[FinetuneError],
) -> CsvTable:
    """Read a whole table in UTF-8, with or without a byte order mark.

    Bytes that are no UTF-8 become lone surrogates, as in names of files. A header with blanks
    before its names (``path, label``) says that the whole file has blanks after its commas. Column
    names are compared without regard to case and blanks, with a warning where that was needed.

    Args:
        path: a regular file, or a link to one.
        known: names of columns that have a meaning; others keep their spelling.
        required: those of them that have to be there.
        error: what is raised.
    """
    path = Path(path)
    _check_regular(path, error)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline()
            file.seek(0)
            spaced = any(name.startswith(" ") for name in next(csv.reader([first]), []))
            lines = csv.reader(file, strict=True, skipinitialspace=spaced)
            columns = _columns(path, next(lines, []), known, required, error)
            return CsvTable(path, columns, tuple(_rows(path, lines, columns, error)))
    except (csv.Error, OSError) as cause:
        raise error(
            f"Expected a CSV table at {path}, found something else ({cause}); save it as CSV with "
            "UTF-8."
        ) from cause


def _check_regular(path: Path, error: type[FinetuneError]) -> None:
    """Refuse what is not there, and pipes and devices, which may never end."""
    try:
        mode = path.stat().st_mode
    except OSError as cause:
        raise error(
            f"Expected a CSV table at {path}, found {cause.strerror}; check the path."
        ) from cause
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise error(f"Expected a CSV table at {path}, found {what}; name a regular file.")


def _columns(
    path: Path,
    header: Sequence[str],
    known: Sequence[str],
    required: Sequence[str],
    error: type[FinetuneError],
) -> tuple[str, ...]:
    usual = {name.casefold(): name for name in known}
    columns = tuple(usual.get(name.strip().casefold(), name) for name in header)
    lacking = [name for name in required if name not in columns]
    if lacking:
        raise error(
            f"Expected the columns {','.join(required)} in the first line of {path}, found "
            f"{_shown(header)}; {_remedy(header, lacking)}."
        )
    twice = sorted({name for name in columns if columns.count(name) > 1} & {*known})
    if twice:
        raise error(
            f"Expected each column once in {path}, found {', '.join(twice)} twice; remove or "
            "rename one."
        )
    respelt = [
        f"{name!r} as {new}" for name, new in zip(header, columns, strict=True) if name != new
    ]
    if respelt:
        warnings.warn(f"{path}: read column {', '.join(respelt)}", stacklevel=4)
    return columns


def _rows(
    path: Path, lines: Iterator[list[str]], columns: Sequence[str], error: type[FinetuneError]
) -> Iterator[tuple[int, dict[str, str]]]:
    for cells in lines:
        number = lines.line_num  # type: ignore[attr-defined]
        if not cells:  # an empty line
            continue
        if len(cells) != len(columns):
            raise error(
                f"Expected {len(columns)} cells in line {number} of {path}, found {len(cells)}: "
                f"{_shown(cells)}; put a name with a comma in double quotes, with no blank before "
                "them."
            )
        yield number, dict(zip(columns, cells, strict=True))


def _shown(cells: Sequence[str]) -> str:
    """A line, short, and without what no terminal can print."""
    text = ",".join(cells).encode("ascii", "backslashreplace").decode()
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"{printable[:60]}..." if len(printable) > 60 else printable or "an empty file"


def _remedy(header: Sequence[str], lacking: Sequence[str]) -> str:
    """What to do about a first line without the columns, as spreadsheets write it."""
    line = ",".join(header)
    if any("\udc80" <= letter <= "\udcff" or letter == "\0" for letter in line):
        return "save it as CSV with UTF-8"
    if line.strip().casefold().startswith("sep="):
        return "remove this line, which only Excel reads, and put commas between the columns"
    if len(header) == 1 and any(mark in line for mark in ";\t"):
        return "save it with commas between the columns"
    return f"add {' and '.join(lacking)}"


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A header and its rows, as they are written."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def own_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that this package wrote; none where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
