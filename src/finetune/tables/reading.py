"""Predictions read back, ours or another tool's: every cell is checked, nothing is skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.csv_table import CsvTable, read_csv_table
from finetune.errors import DataError
from finetune.extras import need
from finetune.spec import numbers
from finetune.spec.labels import NOT_KNOWN, SEPARATOR, THRESHOLD
from finetune.tables.cells import PREFIX, log_probability, unescaped
from finetune.tables.writing import format_of
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task

ANSWER, ENDS = "prediction", ("lower", "upper")  # of numbers
UNNAMED = ("number",)  # the column of a table of numbers, which does not say its name
LARGEST_LOG = math.log1p(-(2.0**-53))  # of a probability that is not 1
ROUNDING = 1e-2  # how far a row of few digits may be from a sum of 1


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """What a table says.

    Attributes:
        file: where it lies.
        paths: ``N`` names of images, as written.
        task: several labels an image where there are columns ``t:<label>``, a number where there is
            a column ``prediction`` and none of probabilities, else one class.
        labels: of one class an image ``(N,)`` indexes into ``class_names``, -1 where the table
            tells no label; of several labels ``(N, K)`` with 1, 0, and NaN where it is not known;
            numbers ``(N, 1)`` likewise.
        logits: ``(N, C)``; of one class an image log probabilities, whose exponents sum to 1.
        thresholds: of several labels ``(K,)``, probabilities above which each is named.
        half_width: of the intervals about numbers, where there are columns ``lower, upper``.
        groups: ``(N,)`` what the column ``group`` has; empty where there is none.
    """

    file: Path
    paths: tuple[str, ...] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    logits: NDArray[np.float64] = field(repr=False)
    class_names: tuple[str, ...]
    task: Task = MULTICLASS
    thresholds: tuple[float, ...] | None = None
    groups: tuple[str, ...] = field(default=(), repr=False)
    half_width: float | None = None

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which images have a label to judge the answer by, ``(N,)``."""
        if self.labels.ndim == 1:
            return self.labels >= 0
        return ~np.isnan(self.labels).all(axis=1)

    def resolved_paths(self) -> tuple[str, ...]:
        """Absolute paths: relative ones start at the table's folder.

        Where nothing lies there, but in the working folder, they start at that one.
        """
        return tuple(str(self._resolved(Path(path))) for path in self.paths)

    def _resolved(self, path: Path) -> Path:
        beside = self.file.absolute().parent / path
        return path.absolute() if not beside.exists() and path.exists() else beside


def read_table(path: str | Path) -> PredictionTable:
    """Read a table of predictions; needed are ``path`` and at least two columns ``p:<class>``.

    Of numbers ``path`` and ``prediction``; the column itself has no name then but ``number``.

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
    table = read(path)
    columns = [name for name in table.columns if name.startswith(PREFIX)]
    if len(set(table.columns)) != len(table.columns):
        raise DataError(f"{path}: expected each column once, found one twice; rename it.")
    if not columns and {"path", ANSWER} <= set(table.columns):
        return _of_numbers(path, table)
    if "path" not in table.columns or len(columns) < 2:
        raise DataError(
            f"{path}: expected columns path, label and one '{PREFIX}<class>' for each of at least "
            f"two classes, found {list(table.columns[:6])}; write it with `finetune predict` or "
            "`finetune test`."
        )
    class_names = tuple(name.removeprefix(PREFIX) for name in columns)
    paths = _paths(table)
    if all(THRESHOLD + name in table.columns for name in class_names):
        return _of_several_labels(path, table, paths, class_names)
    labels = _labels(table, class_names)
    return PredictionTable(path, paths, labels, _log_probabilities(table, columns), class_names)


def _csv(path: Path) -> CsvTable:
    table = read_csv_table(path, known=("path", "label"), required=(), error=DataError)
    rows = [(n, {name: unescaped(cell) for name, cell in row.items()}) for n, row in table.rows]
    return replace(table, rows=tuple(rows))


def _json_lines(path: Path) -> CsvTable:
    rows: list[tuple[int, dict[str, str]]] = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, parse_float=str, parse_int=str)
                cells = {name: "" if value is None else str(value) for name, value in row.items()}
            except (ValueError, AttributeError) as error:
                raise _wrong(path, number, "a JSON object", str(error)) from error
            if rows and list(cells) != list(rows[0][1]):
                raise _wrong(path, number, "the columns of the first line", str(list(cells)[:6]))
            rows.append((number, cells))
    return CsvTable(path, tuple(rows[0][1]) if rows else (), tuple(rows))


def _parquet(path: Path) -> CsvTable:
    need("parquet", str(path))
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"Expected a Parquet table at {path}, found none ({error}).") from error
    rows = (
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in table.to_pylist()
    )
    return CsvTable(path, tuple(table.column_names), tuple(enumerate(rows, start=1)))


def _paths(table: CsvTable) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, row in table.rows:
        image = row["path"]
        if image in seen:
            found = f"{image!r} again, as in line {seen[image]}"
            raise _wrong(table.path, number, "each image once", found)
        seen[image] = number
    return tuple(seen)


def _labels(table: CsvTable, class_names: Sequence[str]) -> NDArray[np.int64]:
    index = {"": -1, **{name: i for i, name in enumerate(class_names)}}
    labels = np.full(len(table.rows), -1, dtype=np.int64)
    for position, (number, row) in enumerate(table.rows):
        label = row.get("label", "")
        if label not in index:
            expected = f"a label among the {len(class_names)} classes of the '{PREFIX}' columns"
            raise _wrong(table.path, number, f"{expected}, or none", repr(label))
        labels[position] = index[label]
    return labels


def _of_several_labels(
    path: Path, table: CsvTable, paths: tuple[str, ...], names: tuple[str, ...]
) -> PredictionTable:
    """A logit from each probability: one of 1 counts as 1 less the least that a float can lose."""
    logs = np.minimum(_logarithms(table, [PREFIX + name for name in names]), LARGEST_LOG)
    labels = np.empty(logs.shape)
    index = {name: position for position, name in enumerate(names)}
    for position, (number, row) in enumerate(table.rows):
        labels[position] = _marks(table, number, row.get("label", NOT_KNOWN), index)
    bounds = np.exp(_logarithms(table, [THRESHOLD + name for name in names]))
    if len(bounds) and not ((bounds == bounds[0]).all() and (bounds[0] > 0).all()):
        expected = f"one threshold above 0 in each column '{THRESHOLD}'"
        raise _wrong(table.path, table.rows[0][0], expected, "several, or 0")
    return PredictionTable(
        path,
        paths,
        labels,
        logs - np.log(-np.expm1(logs)),
        names,
        MULTILABEL,
        tuple(np.minimum(bounds[0], math.exp(LARGEST_LOG)).tolist()) if len(bounds) else None,
        _groups(table),
    )


def _of_numbers(path: Path, table: CsvTable) -> PredictionTable:
    def column(name: str, *, empty: bool = False) -> NDArray[np.float64]:
        values = np.full(len(table.rows), math.nan)
        for position, (line, row) in enumerate(table.rows):
            text = row.get(name, "")
            try:
                values[position] = math.nan if empty and not text else numbers.number(text)
            except ValueError:
                expected = f"a number such as 31.5 in column {name!r}"
                raise _wrong(path, line, expected, repr(text[:40])) from None
        return values

    answers, half_width = column(ANSWER), None
    if table.rows and set(ENDS) <= set(table.columns):
        low, high = map(column, ENDS)
        half_width = float(np.median(high - low) / 2)
        rounding = 1e-6 * (np.abs([low, high]).max() + half_width)
        if half_width < 0 or np.abs((high - low) / 2 - half_width).max() > rounding:
            expected = f"intervals of one width in columns {' and '.join(ENDS)}"
            raise _wrong(path, table.rows[0][0], expected, "several")
    return PredictionTable(
        path,
        _paths(table),
        column("label", empty=True)[:, None],
        answers[:, None],
        UNNAMED,
        REGRESSION,
        groups=_groups(table),
        half_width=half_width,
    )


def _groups(table: CsvTable) -> tuple[str, ...]:
    return tuple(row["group"] for _, row in table.rows) if "group" in table.columns else ()


def _marks(table: CsvTable, number: int, text: str, index: Mapping[str, int]) -> list[float]:
    """1, 0 or NaN for each label; a cell of ``?`` alone says that nothing is known."""
    marks = [math.nan if text == NOT_KNOWN else 0.0] * len(index)
    for part in text.split(SEPARATOR) if text not in ("", NOT_KNOWN) else ():
        name = part.removeprefix(NOT_KNOWN) if part not in index else part
        if name not in index:
            expected = f"labels among the {len(index)} of the '{PREFIX}' columns"
            raise _wrong(table.path, number, expected, repr(part))
        marks[index[name]] = math.nan if name != part else 1.0
    return marks


def _log_probabilities(table: CsvTable, columns: Sequence[str]) -> NDArray[np.float64]:
    values = _logarithms(table, columns)
    for (number, _), row in zip(table.rows, values, strict=True):
        total = math.fsum(np.exp(row))
        if abs(total - 1) > ROUNDING:
            expected = "probabilities that sum to 1"
            raise _wrong(table.path, number, expected, f"{total:.4g}")
    normalised: NDArray[np.float64] = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
    return normalised


def _logarithms(table: CsvTable, columns: Sequence[str]) -> NDArray[np.float64]:
    values = np.empty((len(table.rows), len(columns)))
    for position, (number, row) in enumerate(table.rows):
        try:
            values[position] = [log_probability(row[name]) for name in columns]
        except (ValueError, OverflowError) as error:
            expected = f"a probability in every column such as {columns[0]!r}"
            raise _wrong(table.path, number, expected, str(error)) from error
    return values


def _wrong(path: Path, line: int, expected: str, found: str) -> DataError:
    return DataError(
        f"{path}, line {line}: expected {expected}, found {found}; "
        "correct it, or write the table with `finetune predict`."
    )
