"""Answers written as they come: CSV, Parquet or JSON lines, whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.errors import UsageError

Format = Literal["csv", "parquet", "jsonl"]
Row = Mapping[str, Any]
ROWS_A_GROUP = 4096


def format_of(path: str | Path) -> Format:
    """The format that a file's ending names.

    Raises:
        UsageError: none of .csv, .parquet, .jsonl.
    """
    match Path(path).suffix.lower():
        case ".csv":
            return "csv"
        case ".parquet":
            return "parquet"
        case ".jsonl" | ".ndjson":
            return "jsonl"
        case suffix:
            raise UsageError(
                f"Expected an output file that ends in .{', .'.join(get_args(Format))}, "
                f"found {suffix or 'no ending'!r} in {path}; rename it."
            )


@contextmanager
def open_answer_file(path: str | Path) -> Iterator[Callable[[Row], None]]:
    """Open a file for rows; it appears under its name only when all rows are written.

    Yields:
        A function that writes one row; all rows have the columns of the first.

    Raises:
        UsageError: the ending names no format, or the folder does not exist.
    """
    path = Path(path)
    opened = {"csv": _csv, "parquet": _parquet, "jsonl": _json_lines}[format_of(path)]
    if not path.parent.is_dir():
        raise UsageError(
            f"Expected a folder to write {path.name} into, found no {path.parent}; create it."
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with opened(beside) as write:
            yield write
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _csv(path: Path) -> Iterator[Callable[[Row], None]]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        started = False

        def write(row: Row) -> None:
            nonlocal started
            if not started:
                writer.writerow(row)
                started = True
            writer.writerow(
                f"{value:.6g}" if isinstance(value, float) else value for value in row.values()
            )
            file.flush()

        yield write


@contextmanager
def _json_lines(path: Path) -> Iterator[Callable[[Row], None]]:
    with path.open("w", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            file.flush()

        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Row], None]]:
    import pyarrow
    import pyarrow.parquet

    waiting: list[Row] = []
    writer: Any = None

    def flush() -> None:
        nonlocal writer
        if not waiting:
            return
        table = pyarrow.Table.from_pylist([dict(row) for row in waiting])
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
        waiting.clear()

    def write(row: Row) -> None:
        waiting.append(row)
        if len(waiting) >= ROWS_A_GROUP:
            flush()

    try:
        yield write
        flush()
        if writer is None:
            pyarrow.parquet.write_table(pyarrow.table({}), path)
    finally:
        if writer is not None:
            writer.close()
