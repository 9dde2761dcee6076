"""Predictions read back, ours or another tool's: every cell is checked, nothing is skipped."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from finetune.errors import DataError
from finetune.tables.cells import PREFIX, log_probability, unescaped
from finetune.tables.writing import format_of

ROUNDING = 1e-2  # how far a row of few digits may be from a sum of 1


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """What a table says.

    Attributes:
        file: where it lies.
        paths: ``N`` names of images, as written.
        labels: ``(N,)`` indexes into ``class_names``; -1 where the table tells no label.
        log_probabilities: ``(N, C)`` in nats; each row's probabilities sum to 1.
    """

    file: Path
    paths: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    log_probabilities: NDArray[np.float64] = field(repr=False)
    class_names: tuple[str, ...]

    def resolved_paths(self) -> tuple[str, ...]:
        """Absolute paths: relative ones start at the table's folder.

        Where nothing lies there, but in the working folder, they start at that one.
        """
        return tuple(str(self._resolved(Path(path))) for path in self.paths)

    def _resolved(self, path: Path) -> Path:
        beside = self.file.absolute().parent / path
        return path.absolute() if not beside.exists() and path.exists() else beside


class _Line(NamedTuple):
    number: int
    cells: list[str]


def read_table(path: str | Path) -> PredictionTable:
    """Read a table of predictions; needed are ``path`` and at least two columns ``p:<class>``.

    ``label`` may be missing or empty; other columns are not looked at. Formats are told by the
    ending, as they are written.

    Raises:
        DataError: no such file, columns that are missing or there twice, a row of another length,
            a cell that is no probability, a row that does not sum to 1, a label that is none of
            the classes, an image that is there twice. Messages name the line.
    """
    path = Path(path)
    read = {"csv": _csv, "jsonl": _json_lines, "parquet": _parquet}[format_of(path)]
    if not path.is_file():
        raise DataError(f"Expected a table of predictions at {path}, found no regular file there.")
    try:
        lines = list(read(path))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"Expected a table of predictions at {path}, found it unreadable ({error}); "
            "write it with `finetune predict`."
        ) from error
    header, rows = (lines[0].cells, lines[1:]) if lines else ([], [])
    columns = [i for i, name in enumerate(header) if name.startswith(PREFIX)]
    if "path" not in header or len(columns) < 2:
        raise DataError(
            f"{path}: expected columns path, label and one '{PREFIX}<class>' for each of at least "
            f"two classes, found {header[:6]}; write it with `finetune predict` or `finetune test`."
        )
    if len(set(header)) != len(header):
        raise DataError(f"{path}: expected each column once, found one twice; rename it.")
    for line in rows:
        if len(line.cells) != len(header):
            raise _wrong(path, line, f"{len(header)} fields", str(len(line.cells)))
    class_names = tuple(header[i].removeprefix(PREFIX) for i in columns)
    return PredictionTable(
        file=path,
        paths=_paths(path, rows, header.index("path")),
        labels=_labels(path, rows, header, class_names),
        log_probabilities=_log_probabilities(path, rows, columns),
        class_names=class_names,
    )


def _csv(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        for cells in reader:
            if cells:
                yield _Line(reader.line_num, [unescaped(cell) for cell in cells])


def _json_lines(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8-sig") as file:
        header: list[str] = []
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            row = json.loads(text, parse_float=str, parse_int=str)
            if not isinstance(row, dict) or (header and list(row) != header):
                raise ValueError(f"line {number} has other columns than the first")
            if not header:
                header = list(row)
                yield _Line(number, header)
            yield _Line(number, ["" if value is None else str(value) for value in row.values()])


def _parquet(path: Path) -> Iterator[_Line]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    yield _Line(0, table.column_names)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield _Line(number, ["" if value is None else str(value) for value in row.values()])


def _paths(path: Path, rows: Sequence[_Line], column: int) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for line in rows:
        image = line.cells[column]
        if image in seen:
            raise _wrong(path, line, "each image once", f"{image!r} again, as in {seen[image]}")
        seen[image] = line.number
    return tuple(seen)


def _labels(
    path: Path, rows: Sequence[_Line], header: Sequence[str], class_names: Sequence[str]
) -> NDArray[np.int64]:
    index = {"": -1, **{name: i for i, name in enumerate(class_names)}}
    labels = np.full(len(rows), -1, dtype=np.int64)
    for position, line in enumerate(rows if "label" in header else ()):
        label = line.cells[header.index("label")]
        if label not in index:
            expected = f"a label among the {len(class_names)} classes of the '{PREFIX}' columns"
            raise _wrong(path, line, f"{expected}, or none", repr(label))
        labels[position] = index[label]
    return labels


def _log_probabilities(
    path: Path, rows: Sequence[_Line], columns: Sequence[int]
) -> NDArray[np.float64]:
    values = np.empty((len(rows), len(columns)))
    for position, line in enumerate(rows):
        try:
            values[position] = [log_probability(line.cells[i]) for i in columns]
        except (ValueError, OverflowError) as error:
            expected = f"a probability in every '{PREFIX}' column"
            raise _wrong(path, line, expected, str(error)) from error
        total = math.fsum(np.exp(values[position]))
        if abs(total - 1) > ROUNDING:
            raise _wrong(path, line, "probabilities that sum to 1", f"{total:.4g}")
    normalised: NDArray[np.float64] = log_softmax(values, axis=1) if len(values) else values
    return normalised


def _wrong(path: Path, line: _Line, expected: str, found: str) -> DataError:
    return DataError(
        f"{path}, line {line.number}: expected {expected}, found {found}; "
        "correct it, or write the table with `finetune predict`."
    )
