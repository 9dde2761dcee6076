"""Answers as Parquet parts in a folder or on a store, so that work which was ended goes on.

``_index.json`` says whose answers they are and, at the end, how many. Each block of images becomes
one part, whose name is the record that it is done::

    part-000012-4096-9f86d081884c7d65.parquet       block 12, of 4,096 images, and which they were
    _bad-000012-4096-9f86d081884c7d65-17.parquet    those 17 of them that cannot be read, and why

A part appears as a whole, after the list of its bad images; so whatever is killed leaves nothing
half-written, and a second call answers what is missing. Names that begin with ``_`` are passed over
by whoever reads the folder as one table (pyarrow, pandas, Spark).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from finetune import storage
from finetune.documents import read_json
from finetune.errors import DataError, UsageError
from finetune.prediction.streaming import AnsweredBatch
from finetune.spec.protocols import ImageBlock
from finetune.spec.schema import by_name, plain, record, whole
from finetune.tables.writing import Row, Write, encodable, open_table

INDEX = "_index.json"
_INDEX = record({"format": whole(1, 1), "work": by_name(plain())})
_PART = re.compile(r"part-(\d{6,})-(\d+)-([0-9a-f]{16})\.parquet")
_BAD = re.compile(r"_bad-(\d{6,})-(\d+)-([0-9a-f]{16})-(\d+)\.parquet")


class Done(NamedTuple):
    """How many images a block had, and how many of them could not be read."""

    images: int
    bad: int


class _Key(NamedTuple):
    """Which block of which images."""

    number: int
    images: int
    fingerprint: str

    @classmethod
    def of(cls, found: re.Match[str]) -> _Key:
        return cls(int(found[1]), int(found[2]), found[3])

    @property
    def part(self) -> str:
        return f"part-{self}.parquet"

    def bad(self, count: int) -> str:
        return f"_bad-{self}-{count}.parquet"

    def __str__(self) -> str:
        return f"{self.number:06d}-{self.images}-{self.fingerprint}"


def write_part(
    folder: str,
    number: int,
    block: ImageBlock,
    batches: Iterable[AnsweredBatch],
    class_names: Sequence[str],
    *,
    top_k: int = 1,
) -> Done:
    """Write the answers to one block: first which images are bad, then the part.

    Args:
        folder: here or on a store.
        number: of the block.
        block: of whose images the answers are.
        batches: the answers, computed as they are asked for.
        class_names: of the columns.
        top_k: how many classes are named.

    Raises:
        OutputError: it cannot be written.
    """
    bad: list[tuple[str, str]] = []
    good = 0
    with tempfile.TemporaryDirectory(prefix="finetune-") as beside:
        part = Path(beside, "part.parquet")
        with open_table(part, class_names) as write:
            for names, predictions, reasons in batches:
                bad += reasons
                good += len(names)
                if predictions is not None:
                    predictions.write(_under(names, write), top_k=top_k)
        key = _Key(number, good + len(bad), fingerprint(block))
        if bad:
            listed = Path(beside, "bad.parquet")
            _write_bad(listed, bad)
            storage.put(listed, storage.below(folder, key.bad(len(bad))))
        if good:
            storage.put(part, storage.below(folder, key.part))
    return Done(key.images, len(bad))


def _under(names: Sequence[str], write: Write) -> Write:
    """Rows under these names: a path has lost one of two slashes."""
    given = iter(names)

    def write_named(row: Row, log_probabilities: Sequence[float]) -> None:
        write({**row, "path": next(given)}, log_probabilities)

    return write_named


def opened_parts(folder: str, work: Mapping[str, Any], *, overwrite: bool) -> list[str]:
    """The names of the parts that are there; where nothing is, the work is begun.

    Args:
        folder: here or on a store.
        work: what decides the answers: the checkpoint, and how it is asked.
        overwrite: remove the parts of what was done before.

    Raises:
        UsageError: other files are there, or answers of another checkpoint or other settings.
        OutputError: nothing can be written there.
    """
    storage.make_folder(folder)
    names = _names(folder)
    if INDEX not in names:
        if names:
            raise UsageError(
                f"Expected an empty folder or parts of answers at {folder}, found {names[0]} and "
                f"no {INDEX}; name another folder."
            )
        _write_index(folder, work)
        return []
    found = _read_index(folder)
    storage.remove_left_behind(folder)
    ours = [name for name in names if _PART.fullmatch(name) or _BAD.fullmatch(name)]
    if overwrite:
        for name in ours:
            storage.remove(storage.below(folder, name))
        _write_index(folder, work)
        return []
    for what, value in work.items():
        if found.get(what) != value:
            raise UsageError(
                f"Expected answers of {what} {value} in {folder}, found those of "
                f"{found.get(what)}; name another folder, or replace them with --overwrite."
            )
    done, _ = _done(ours)
    for bad in filter(None, map(_BAD.fullmatch, ours)):
        if done.get(int(bad[1])) != _Key.of(bad):  # its part was not written any more
            storage.remove(storage.below(folder, bad[0]))
    return ours


class PartsRecord:
    """What is done of a work, by the names of its parts.

    Args:
        folder: here or on a store.
        work: as for :func:`opened_parts`.
        names: that it gave.
    """

    def __init__(self, folder: str, work: Mapping[str, Any], names: Iterable[str]) -> None:
        self.folder = folder
        self.work = work
        self._last = -1
        self._done, self._bad = _done(names)

    @property
    def images(self) -> int:
        """How many are done, those that cannot be read among them."""
        return sum(key.images for key in self._done.values())

    @property
    def answered(self) -> int:
        """How many of them have an answer."""
        return self.images - self._bad

    def size_of(self, number: int) -> int:
        """How many images a block is to have: those of its part where there is one."""
        key = self._done.get(number)
        return int(self.work["part_size"]) if key is None else key.images

    def is_done(self, number: int, block: ImageBlock) -> bool:
        """Whether a block has been answered.

        Raises:
            DataError: other images have been.
        """
        self._last = max(self._last, number)
        key = self._done.get(number)
        if key is not None and key.fingerprint != fingerprint(block):
            raise DataError(
                f"Expected in {self.folder} answers to these images, found that part {number} "
                f"answers others than {block.first} and what follows it; name another folder, or "
                "the images as before."
            )
        return key is not None

    def finish(self) -> Done:
        """Note in the index that all is done, and how many images that was.

        Raises:
            DataError: there are parts of more images than there are now.
        """
        if later := [number for number in self._done if number > self._last]:
            raise DataError(
                f"Expected in {self.folder} answers to these images alone, found {len(later)} "
                "parts of further ones; name another folder, or the images as before."
            )
        self._done, self._bad = _done(_names(self.folder))
        _write_index(self.folder, self.work, images=self.answered, bad=self._bad)
        return Done(self.images, self._bad)


def _names(folder: str) -> list[str]:
    names = [storage.base_name(entry.address) for entry in storage.listed(folder)]
    return [name for name in names if not name.startswith(".")]


def _done(names: Iterable[str]) -> tuple[dict[int, _Key], int]:
    """The blocks that are done, by number, and how many images of them are bad."""
    names = list(names)
    parts = [_Key.of(found) for found in map(_PART.fullmatch, names) if found]
    done = {key.number: key for key in parts}
    count = 0
    for found in filter(None, map(_BAD.fullmatch, names)):
        key, bad = _Key.of(found), int(found[4])
        if bad == key.images:  # no image of the block can be read
            done[key.number] = key
        if done.get(key.number) == key:
            count += bad
    return done, count


def _read_index(folder: str) -> dict[str, Any]:
    """Whose answers there are."""
    address = storage.below(folder, INDEX)
    with tempfile.TemporaryDirectory(prefix="finetune-") as beside:
        small = Path(beside, INDEX)
        small.write_bytes(storage.read(address))
        try:
            found: dict[str, Any] = read_json(small, _INDEX)
        except UsageError as error:
            raise UsageError(
                f"Expected an index of parts at {address}, found another file; name another folder."
            ) from error
    return dict(found["work"])


def _write_index(folder: str, work: Mapping[str, Any], **found: int) -> None:
    content = {"format": 1, "work": dict(work), "complete": bool(found), **found}
    with tempfile.TemporaryDirectory(prefix="finetune-") as place:
        beside = Path(place, INDEX)
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        storage.put(beside, storage.below(folder, INDEX))


def fingerprint(block: ImageBlock) -> str:
    """Of which images a block is, as far as a listing tells: names and sizes."""
    identity = block.identity.encode("utf-8", "surrogateescape")
    return blake2b(identity, digest_size=8).hexdigest()


def _write_bad(beside: Path, bad: list[tuple[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [[encodable(value) for value in column] for column in zip(*bad, strict=True)]
    names = ("path", "reason")
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), beside)
