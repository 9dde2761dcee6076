"""Labelled images in tar shards and tables: these are manifests that travel with their images.

- In WebDataset's layout, beside ``key.jpg`` lies ``key.cls`` with the label, or ``key.json``, an
  object whose keys are a manifest's columns (``label``, ``split``, ``fold``, ``group``).
- In a table, beside the column of images, are the columns of a manifest. A label may be a number
  that Hugging Face's ``datasets`` has written a name for.
- Files called ``train-...``, ``val-...``, ``test-...`` are that split, if one is of train.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.data.folder import SPLIT_FOLDERS, ImageFolder
from finetune.data.image_bytes import image_bytes
from finetune.data.image_tables import PATHS, TABLES, checked_path, image_column, open_table
from finetune.data.label_cells import checked_columns
from finetune.data.manifest import COLUMNS, Line, as_folder, parse_row
from finetune.data.number_cells import LABEL, NUMBERS
from finetune.data.shard_files import images_within
from finetune.data.tar_shards import index_of
from finetune.data.walk import UnusedFile, Walk, why_hidden
from finetune.errors import ImageFolderError, ManifestError
from finetune.spec.choices import TaskOfData
from finetune.spec.images import place_of, within
from finetune.spec.labels import SEPARATOR as BETWEEN_LABELS

_FIRST_WORD = re.compile(r"([A-Za-z]+)[-_.].*\.")
_NOT_USED = "neither an image nor the label of one"


def read_shards(
    shards: Sequence[Path],
    root: Path,
    *,
    task: TaskOfData = "auto",
    label_columns: Sequence[str] = (),
) -> ImageFolder:
    """The images in shards and tables, as :func:`finetune.data.manifest.read_manifest` has them.

    Raises:
        ManifestError: an image without a label, a column of another type, an unknown split, ...
        ImageFolderError: no image at all.
    """
    labels_in = checked_columns(label_columns, COLUMNS)
    labels_in = (labels_in or (LABEL,))[:1] if task == NUMBERS else labels_in
    splits = {shard: _split_by_name(shard) for shard in shards}
    has_train = "train" in splits.values()
    rows = []
    unused: list[UnusedFile] = []
    unlisted: list[UnusedFile] = []
    for shard in shards:
        if shard.suffix.lower() in TABLES:
            lines = _rows_of_table(shard, labels_in or (LABEL,), numbers=task == NUMBERS)
        else:
            lines = _members(shard, labels_in or (LABEL,), unused)
            if damage := index_of(shard).damage:
                unlisted.append(UnusedFile(shard, damage))
        for line in lines:
            split = line.cells.get("split") or (splits[shard] if has_train else "")
            given = line._replace(cells={**line.cells, "split": split})
            rows.append(parse_row(given, "group", labels_in, numbers=task == NUMBERS))
    source = str(shards[0] if len(shards) == 1 else root)
    if not rows:
        found = f"{unlisted[0].path}, which {unlisted[0].reason}" if unlisted else "none"
        raise ImageFolderError(f"Expected images in {source}, found {found}; write it again.")
    folder = as_folder(rows, source, root, task, labels_in)
    return replace(folder, unused=(*folder.unused, *unused), unlisted=tuple(unlisted))


def has_label(shard: Path) -> bool:
    """Whether labels stand in the one column of that name, as the first image has it."""
    if shard.suffix.lower() in TABLES:
        with open_table(str(shard)) as opened:
            return LABEL in opened.schema_arrow.names
    first = next(iter(images_within(shard)), None)
    return first is not None and LABEL in _said_of(shard, place_of(first)[1])[0]


def _split_by_name(shard: Path) -> str:
    """``train`` of ``train-0000.tar``; of no split nothing."""
    word = _FIRST_WORD.match(shard.name)
    return SPLIT_FOLDERS.get(word[1].casefold(), "") if word else ""


def _members(shard: Path, needed: Sequence[str], unused: list[UnusedFile]) -> Iterator[Line]:
    """The images of a shard with what is said of them; what is not used is added to the list."""
    index = index_of(shard)
    is_image = Walk().is_image
    said: set[str] = set()
    images = [n for n in index.places if is_image(n) and not why_hidden(PurePosixPath(n).name)]
    for name in images:
        stem = os.path.splitext(name)[0]
        cells, members = _said_of(shard, name)
        said.update(members)
        if lacking := [column for column in needed if column not in cells]:
            if index.damage:  # it may have lain behind
                continue
            raise ManifestError(
                f"Expected {stem}.cls or {', '.join(lacking)} in {stem}.json beside each image, "
                f"found neither for {within(shard, name)}; add the label, or take the image out."
            )
        yield Line(within(shard, name), cells, str(within(shard, stem)))
    others = index.places.keys() - said - set(images)
    reasons = {**{name: _NOT_USED for name in index.places if name in others}, **index.left_out}
    unused += [UnusedFile(within(shard, name), reason) for name, reason in reasons.items()]


def _said_of(shard: Path, name: str) -> tuple[dict[str, str], list[str]]:
    """The cells of an image of a shard, and the members that say them."""
    places = index_of(shard).places
    cells: dict[str, str] = {}
    members = []
    for start in (_key(name), os.path.splitext(name)[0]):
        if (member := f"{start}.json") in places:
            members.append(member)
            cells |= _object(shard, member)
        if (member := f"{start}.cls") in places:
            members.append(member)
            cells[LABEL] = _text_of(shard, member)
    return cells, members


def _key(name: str) -> str:
    """WebDataset's: up to the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _text_of(shard: Path, member: str) -> str:
    try:
        return image_bytes(within(shard, member)).decode().strip()
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"Expected text in {within(shard, member)}, found something else ({error.reason}); "
            "write it as UTF-8."
        ) from error


def _object(shard: Path, member: str) -> dict[str, str]:
    try:
        found = json.loads(_text_of(shard, member))
        return {name: _cell(value) for name, value in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ManifestError(
            f'Expected an object such as {{"label": "cat"}} in {within(shard, member)}, found '
            "something else; correct it."
        ) from error


def _cell(value: object) -> str:
    """A value as a manifest's cell has it."""
    if isinstance(value, list):
        return BETWEEN_LABELS.join(map(_cell, value))
    return "" if value is None else str(int(value) if isinstance(value, bool) else value)


def _rows_of_table(table: Path, needed: Sequence[str], *, numbers: bool) -> Iterator[Line]:
    """The rows of a table, without the images themselves."""
    with open_table(str(table)) as opened:
        schema = opened.schema_arrow
        holds_paths = image_column(str(table), schema) == PATHS
        if lacking := [column for column in needed if column not in schema.names]:
            raise ManifestError(
                f"Expected the column {', '.join(lacking)} in {table}, found "
                f"{', '.join(schema.names[:12])}; add or rename one."
            )
        columns = [*needed, *(c for c in ("split", "fold", "group") if c in schema.names)]
        for column in columns:
            _check_type(table, column, schema.field(column).type, numbers and column in needed)
        names = {column: _names(schema, column) for column in columns}
        row = 0
        for batch in opened.iter_batches(1024, columns=columns + [PATHS] * holds_paths):
            for values in batch.to_pylist():
                path = within(table, row)
                if holds_paths:
                    path = table.parent / checked_path(str(table), values.pop(PATHS))
                cells = {c: _cell(_named(value, names[c])) for c, value in values.items()}
                yield Line(path, cells, f"row {row} of {table}")
                row += 1


def _check_type(table: Path, column: str, kind: Any, numbers: bool) -> None:
    import pyarrow.types as types

    inner = kind.value_type if types.is_list(kind) or types.is_dictionary(kind) else kind
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    if not any(test(inner) for test in (*plain, types.is_null)):
        if numbers and types.is_floating(kind):
            return
        raise ManifestError(
            f"Expected text or whole numbers in the column {column} of {table}, found {kind}; "
            "write it so"
            + ", or give --data.task regression." * types.is_floating(kind)
            + "." * (not types.is_floating(kind))
        )


def _names(schema: Any, column: str) -> Sequence[str]:
    """What Hugging Face's ``datasets`` calls the numbers of a column; nothing where it does not."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        feature = features[column]
        return [str(name) for name in feature.get("feature", feature)["names"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _named(value: object, names: Sequence[str]) -> object:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    return value
