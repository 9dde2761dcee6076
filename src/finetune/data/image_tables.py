"""Images in a Parquet file: their bytes, or the paths of files beside it."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from finetune import storage
from finetune.cache_dir import file_stamp
from finetune.errors import DataError, ImageError
from finetune.extras import need
from finetune.spec.images import SEPARATOR, within
from finetune.spec.protocols import StreamedImage

TABLES = (".parquet",)
BYTES, PATHS = ("image", "bytes"), "path"  # Hugging Face's `image` holds bytes too
ROWS_AT_ONCE = 64
GROUP_BYTES = 2**30  # most of a row group that is read to give one of its rows

_reading = threading.Lock()


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some rows of a Parquet file.

    Attributes:
        address: of the file.
        size: in bytes.
        column: that holds bytes or paths.
        start, stop: the rows.
    """

    address: str
    size: int
    column: str
    start: int
    stop: int

    @property
    def identity(self) -> str:
        """The file with its size, and the rows."""
        return f"{self.size} {self.address} {self.column} {self.start}-{self.stop}"

    @property
    def first(self) -> str:
        """The file, and the first row."""
        return f"{self.address}, row {self.start}"

    def images(self) -> Iterator[StreamedImage]:
        """Each image, called by its path, else ``table.parquet::row``."""
        for row, value in enumerate(self._values(), start=self.start):
            name = f"{self.address}{SEPARATOR}{row}"
            if isinstance(value, dict):
                value = value.get("bytes")
            if self.column == PATHS and value:
                yield StreamedImage(value, _Beside(self.address, value))
            else:
                yield StreamedImage(name, _Cell(name, value))

    def _values(self) -> Iterator[Any]:
        """The column's cells, a few rows at a time."""
        with open_table(self.address) as table:
            n = table.num_row_groups
            ends = list(accumulate(table.metadata.row_group(g).num_rows for g in range(n)))
            groups = [g for g in range(n) if _begin(ends, g) < self.stop and ends[g] > self.start]
            row = _begin(ends, groups[0])
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[self.column]):
                for cell in batch.column(0):
                    if self.start <= row < self.stop:
                        yield cell.as_py()
                    row += 1


@dataclass(frozen=True, slots=True)
class _Cell:
    """Reads what a cell holds."""

    name: str
    value: object

    def __call__(self) -> bytes:
        if not isinstance(self.value, bytes):
            raise ImageError(f"Expected an image's bytes, found an empty cell at {self.name}.")
        return self.value


@dataclass(frozen=True, slots=True)
class _Beside:
    """Reads the file that a cell names, if it lies below the folder of the table."""

    table: str
    path: str

    def __call__(self) -> bytes:
        path = checked_path(self.table, self.path)
        folder = self.table.rpartition("/")[0]
        place = storage.below(folder, path) if folder else path
        try:
            return storage.read(place)
        except FileNotFoundError as error:
            raise ImageError(f"Expected an image at {place}: it is gone.") from error


def checked_path(table: str, path: str | None) -> str:
    """What a cell names, if it lies below the folder of the table.

    Raises:
        ImageError: it does not.
    """
    parts = PurePosixPath(path or "/")
    if not path or parts.is_absolute() or ".." in parts.parts or storage.is_remote(path):
        raise ImageError(
            f"Expected a path below the folder of {table}, found {path}; name files elsewhere on "
            "the command line."
        )
    return path


def paths_of(table: Path) -> list[Path]:
    """All images of a table of this machine.

    Raises:
        DataError: no such table.
    """
    if _layout(str(table), file_stamp(table))[0] != PATHS:
        return [within(table, row) for row in range(rows_of(table))]
    with open_table(str(table)) as opened:
        cells = opened.read(columns=[PATHS]).column(0).to_pylist()
    return [table.parent / checked_path(str(table), cell) for cell in cells]


def row_blocks(address: str, size: int, rows: int) -> Iterator[RowBlock]:
    """A table's rows as blocks: of bytes whole row groups, of paths so many rows.

    Raises:
        DataError: no Parquet file, or no column with images.
    """
    with open_table(address) as table:
        column = image_column(address, table.schema_arrow)
        groups = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
    total, start, stop = sum(groups), 0, 0
    for ahead in groups if column != PATHS else [rows] * -(-total // rows):
        stop = min(stop + ahead, total)
        if stop - start >= rows or start < stop == total:
            yield RowBlock(address, size, column, start, stop)
            start = stop


def cell_bytes(table: Path, row: int) -> bytes:
    """The image in a row of a table of this machine; its row group is held for the next ones.

    Raises:
        DataError: no such table. ImageError: an empty cell. IndexError: no such row.
    """
    stamp = file_stamp(table)
    with _reading:  # one thread reads a row group for all
        column, ends = _layout(str(table), stamp)
        group = bisect_right(ends, row)
        cell = _cells(str(table), stamp, column, group)[row - _begin(ends, group)].as_py()
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return _Cell(f"{table}{SEPARATOR}{row}", cell)()


def rows_of(table: Path) -> int:
    """How many rows a table of this machine has."""
    ends = _layout(str(table), file_stamp(table))[1]
    return ends[-1] if ends else 0


@cache
def _layout(address: str, stamp: tuple[int, ...]) -> tuple[str, list[int]]:
    """The column of images, and where each row group ends."""
    with open_table(address) as table:
        groups = [table.metadata.row_group(g) for g in range(table.num_row_groups)]
        column = image_column(address, table.schema_arrow)
    return column, list(accumulate(group.num_rows for group in groups))


@lru_cache(maxsize=2)
def _cells(address: str, stamp: tuple[int, ...], column: str, group: int) -> Any:
    with open_table(address) as table:
        found = table.metadata.row_group(group)
        size = sum(
            part.total_uncompressed_size
            for part in map(found.column, range(found.num_columns))
            if part.path_in_schema.partition(".")[0] == column
        )
        if size > GROUP_BYTES:
            raise DataError(
                f"Expected row groups of at most {GROUP_BYTES >> 20:,} MiB in {address}, found one "
                f"of {size >> 20:,} MiB; write it again with fewer rows a group."
            )
        return table.read_row_group(group, columns=[column]).column(0)


def image_column(address: str, schema: Any) -> str:
    """The column that holds images, or their paths.

    Raises:
        DataError: there is none, or of another type.
    """
    import pyarrow.types as types

    for name in (*BYTES, PATHS):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        within = name in BYTES and types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        inner = kind.field("bytes").type if within else kind
        is_text = types.is_string(inner) or types.is_large_string(inner)
        if is_text if name == PATHS else types.is_binary(inner) or types.is_large_binary(inner):
            return name
        wanted = "text" if name == PATHS else "bytes"
        raise DataError(
            f"Expected {wanted} in the column {name} of {address}, found {kind}; correct it."
        )
    raise DataError(
        f"Expected a column {', '.join(BYTES)} (an image's bytes) or {PATHS} in {address}, found "
        f"{', '.join(schema.names[:6]) or 'none'}; rename one."
    )


def _begin(ends: list[int], group: int) -> int:
    """The first row of a row group."""
    return ends[group - 1] if group else 0


@contextmanager
def open_table(address: str) -> Iterator[Any]:
    """A Parquet file, its rows unread.

    Raises:
        DataError: none. MissingPackageError: what reads it.
    """
    need("parquet", address)
    import pyarrow
    import pyarrow.parquet

    with storage.told(address):
        try:
            with storage.opened(address) as file:
                yield pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        except (pyarrow.ArrowInvalid, FileNotFoundError) as error:
            raise DataError(
                f"Expected a whole Parquet table at {address}, found none "
                f"({' '.join(str(error).split())[:200]}); write or copy it again."
            ) from error
