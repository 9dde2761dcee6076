"""Predictions written as they come: CSV, Parquet or JSON lines, whole or not at all."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from finetune.errors import UsageError
from finetune.extras import need
from finetune.files import atomic_write
from finetune.tables.cells import (
    DIGITS,
    PREFIX,
    SMALLEST,
    disambiguated,
    escaped,
    probability_text,
)

Format = Literal["csv", "parquet", "jsonl"]
ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
Row = Mapping[str, Any]
Write = Callable[[Row, Sequence[float]], None]
ROWS_A_GROUP = 4096
HALF = math.log(0.5)
CLOSE = 0.1  # nats below the likeliest class: rounded, these could overtake it


def format_of(path: str | Path) -> Format:
    """The format that a file's ending names.

    Raises:
        UsageError: none of .csv, .parquet, .jsonl.
        MissingPackageError: what reads and writes Parquet is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ENDINGS:
        raise UsageError(
            f"Expected a table that ends in .{', .'.join(get_args(Format))}, "
            f"found {suffix or 'no ending'!r} in {path}; rename it."
        )
    if ENDINGS[suffix] == "parquet":
        need("parquet", str(path))
    return ENDINGS[suffix]


@contextmanager
def open_table(
    path: str | Path, class_names: Sequence[str], *, safe: bool = False
) -> Iterator[Write]:
    """Open a table for rows; it appears under its name only when all rows are written.

    Args:
        path: its ending names the format.
        class_names: each gets a column ``p:<class>``, behind those of the rows; none for numbers.
        safe: write names that a spreadsheet would take for formulas behind an apostrophe; the
            reader takes it off again. It concerns CSV alone.

    Yields:
        A function that writes one row: the columns before the probabilities, alike in all rows,
        and the log probabilities ``(C,)``, in nats.

    Raises:
        UsageError: the ending names no format, or the folder does not exist.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    form = format_of(path)
    if not path.parent.is_dir():
        raise UsageError(
            f"Expected a folder to write {path.name} into, found no {path.parent}; create it."
        )
    columns = [PREFIX + name for name in class_names]
    with atomic_write(path) as beside:
        match form:
            case "csv":
                opened = _csv(beside, columns, escaped if safe else disambiguated)
            case "jsonl":
                opened = _json_lines(beside, columns)
            case "parquet":
                opened = _parquet(beside, columns)
        with opened as write:
            yield write


@contextmanager
def _csv(beside: Path, columns: Sequence[str], shown: Callable[[str], str]) -> Iterator[Write]:
    def cell(value: Any) -> str:
        return f"{value:.{DIGITS}g}" if isinstance(value, float) else shown(str(value))

    # Lone surrogates stand for the bytes of file names that are no UTF-8.
    with beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        started = False

        def write(row: Row, log_probabilities: Sequence[float]) -> None:
            nonlocal started
            if not started:
                writer.writerow([*row, *columns])
                started = True
            writer.writerow([*map(cell, row.values()), *_numbers(log_probabilities)])

        yield write


@contextmanager
def _json_lines(beside: Path, columns: Sequence[str]) -> Iterator[Write]:
    names = [json.dumps(column, ensure_ascii=False) for column in columns]
    with beside.open("wb") as file:

        def write(row: Row, log_probabilities: Sequence[float]) -> None:
            numbers = zip(names, _numbers(log_probabilities), strict=True)
            start = json.dumps(dict(row), ensure_ascii=False).removesuffix("}")
            pairs = "".join(f", {name}: {number}" for name, number in numbers)
            # A lone surrogate becomes the escape that JSON has for it.
            file.write(f"{start}{pairs}}}\n".encode(errors="backslashreplace"))

        yield write


@contextmanager
def _parquet(beside: Path, columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    names = [encodable(column) for column in columns]
    waiting: list[Row] = []
    numbers: list[list[float]] = []
    writer: Any = None

    def flush() -> None:
        nonlocal writer
        if not waiting:
            return
        # Column by column: rows of a thousand probabilities as dictionaries take ten times as long.
        texts = pyarrow.Table.from_pylist(waiting)
        found = dict(zip(texts.column_names, texts.columns, strict=True))
        table = pyarrow.table(found | dict(zip(names, np.array(numbers).T, strict=True)))
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(
                beside, table.schema, use_dictionary=texts.column_names
            )
        writer.write_table(table)
        waiting.clear()
        numbers.clear()

    def write(row: Row, log_probabilities: Sequence[float]) -> None:
        waiting.append({key: encodable(value) for key, value in row.items()})
        numbers.append([max(math.exp(log), SMALLEST) for log in log_probabilities])
        if len(waiting) >= ROWS_A_GROUP:
            flush()

    try:
        yield write
        flush()
        if writer is None:
            pyarrow.parquet.write_table(pyarrow.table({}), beside)
    finally:
        if writer is not None:
            writer.close()


def _numbers(log_probabilities: Sequence[float]) -> list[str]:
    # Of several labels each alone could be named, and what is left to 1 has to be told.
    close = min(max(log_probabilities, default=0.0) - CLOSE, HALF)
    return [probability_text(log, exact=log > close) for log in log_probabilities]


def encodable(value: Any) -> Any:
    """Text that is UTF-8: a byte that is none stands as ``\\x80``."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
