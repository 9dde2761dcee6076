"""What was found out about files, kept in the cache folder line by line.

A line is a checksum and JSON: the absolute path, the file's stamp, the values. So a million are
read and written without all being held, and a damaged line costs the opening of one file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader, RawIOBase
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from finetune.cache_dir import CachedFiles, write_all
from finetune.data.image_bytes import is_there

VERSION = 5  # of what is remembered; another number forgets everything
ENDING = ".inspections"
LIMIT_BYTES = 256 * 2**20  # of all data sets' memories together
LINES_AT_ONCE = 1000

Stamp = tuple[int, ...]


class Remembered(NamedTuple):
    """One file: its absolute path, what tells whether it has changed, what it turned out to be."""

    path: str
    stamp: Stamp
    values: dict[str, Any]


def recall(files: CachedFiles, group: str) -> Iterator[Remembered]:
    """What the files of a group say; of lines that are whole."""
    return _read(files, files.listed(group, ENDING))


def keep(files: CachedFiles, group: str, seen: Iterable[Remembered]) -> None:
    """Write one file of all that is known of a group, also by other processes meanwhile."""
    older = files.listed(group, ENDING)
    lines = map(_line, _each_once(chain(seen, _read(files, older))))
    path = files.new_path(group, ENDING)
    try:
        with files.create(path) as file:
            while some := b"".join(islice(lines, LINES_AT_ONCE)):
                write_all(file, some)
    except OSError:  # a full disk or a read-only home costs time, not the command
        files.remove(path)
        return
    for read in older:
        files.remove(read)
    files.evict(LIMIT_BYTES, keep=group)


def _each_once(records: Iterable[Remembered]) -> Iterator[Remembered]:
    """The first of each path; what has been deleted or moved since would only make it grow."""
    known: set[str] = set()
    for record in records:
        if record.path not in known and is_there(record.path):
            known.add(record.path)
            yield record


def _read(files: CachedFiles, paths: Iterable[Path]) -> Iterator[Remembered]:
    for path in paths:
        # One that has gone, or is not ours, says nothing.
        with suppress(OSError), BufferedReader(cast("RawIOBase", files.open(path))) as lines:
            yield from filter(None, map(_record, lines))


def _record(line: bytes) -> Remembered | None:
    """None of a line that is damaged in whatever way."""
    checksum, content = line[:8], line[9:]
    try:
        if int(checksum, 16) != zlib.crc32(content):
            return None
        name, stamp, values = json.loads(content)
        return Remembered(str(name), tuple(stamp), dict(values))
    except Exception:
        return None


def _line(record: Remembered) -> bytes:
    content = json.dumps(record).encode() + b"\n"
    return b"%08x %s" % (zlib.crc32(content), content)
