"""How the fits behind a checkpoint split their images: read, joined and written in one place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from finetune.csv_table import read_csv_table
from finetune.errors import CheckpointError, UsageError
from finetune.spec.images import ImageRef
from finetune.spec.splits import SIDES, SplitRecord, Standing, united
from finetune.training.checkpoints import ENTRY, read_content

# Parts of a ``finetune`` entry: the settings and the sides of its fit, and, of fits from before
# sides were kept, the settings that differ from those.
SPLIT_ENTRIES = ("data", "split", "further_data")
NO_ID = "-" * 32  # of an image whose content nobody has noted


def split_records(details: Mapping[str, Any]) -> tuple[SplitRecord, ...]:
    """How the fits that an entry tells of split their images; empty if it tells of none.

    Raises:
        CheckpointError: a damaged split.
    """
    further = tuple(SplitRecord(data) for data in details.get("further_data", ()))
    return (SplitRecord.from_entry(details), *further) if details.get("data") else further


def out_of_fold_answers(details: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Logits ``(C,)`` by the id of an image that has trained, of a fit that had not seen it.

    Empty but for a final layer that was fitted again to all labelled images, which keeps them.
    """
    val = details.get("val") or {}
    kept = details.get("out_of_fold") or (val if val.get("out_of_fold") else None)
    return (
        {}
        if kept is None
        else dict(
            zip(kept["ids"], torch.as_tensor(kept["logits"], dtype=torch.float32), strict=True)
        )
    )


def split_entries(records: Iterable[SplitRecord]) -> dict[str, Any]:
    """The parts of an entry that tell of these fits, for what is made of all of them."""
    records = list(records)
    known = [record for record in records if record.images]
    first = united(known) if known else next(iter(records), None)
    if first is None:
        return {}
    entries: dict[str, Any] = {"data": dict(first.settings)}
    if known:
        entries["split"] = first.plain
    told = [first.dealing]
    for record in records:
        if not record.images and record.dealing not in told:
            told.append(record.dealing)
            entries.setdefault("further_data", []).append(dict(record.settings))
    return entries


def common_record(records: Iterable[SplitRecord]) -> SplitRecord | None:
    """What is to be followed to judge all of these fits; None where nothing is known of them.

    Raises:
        UsageError: of a fit the settings alone are known, and another was split otherwise.
    """
    records = list(records)
    known = [record for record in records if record.images]
    for record in records:
        other = next((each for each in records if each.dealing != record.dealing), None)
        if not record.images and other is not None:
            names = record.dealing.keys() | other.dealing.keys()
            name = min(n for n in names if record.dealing.get(n) != other.dealing.get(n))
            raise UsageError(
                f"Expected fits with one split of the images, found data.{name} = "
                f"{record.dealing.get(name)} and {other.dealing.get(name)}: what one held out may "
                "have trained another; give --data.manifest with images that none was trained on."
            )
    return united(known) if known else next(iter(records), None)


def fitted_record(path: str | Path, details: Mapping[str, Any]) -> SplitRecord | None:
    """What is to be followed of a classifier's checkpoint and its entry's details."""
    return common_record(split_records(with_fitted_split(Path(path), details)))


def record_of_weights(
    pretrained: bool | str | None, *, with_final_layer: bool
) -> SplitRecord | None:
    """How the images that weights have learned from were split; None where nobody has noted it.

    Args:
        pretrained: as a classifier is told where its weights come from.
        with_final_layer: whether a fit goes on from the final layer as well, instead of one of
            its own; val images that only a refitted final layer has seen are val again else.
    """
    if not isinstance(pretrained, str) or Path(pretrained).suffix != ".ckpt":
        return None
    try:
        entry = read_content(pretrained, mmap=True)[ENTRY]
    except CheckpointError:  # other software's weights, or none: whoever loads them tells
        return None
    record = fitted_record(pretrained, entry) if entry["kind"] == "classifier" else None
    return record if record is None or with_final_layer else record.with_val_again()


def with_fitted_split(path: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    """An entry's details with the sides of an old fit, from the ``split.csv`` of its run folder.

    Raises:
        CheckpointError: a damaged ``split.csv``.
    """
    split = details.get("split")
    table = path.absolute().parent.parent / "split.csv"
    is_old = split is None and details.get("data") and not details.get("further_data")
    if is_old and path.parent.name == "checkpoints" and table.is_file():
        split = _from_table(table, details["data"]).plain
    if not isinstance(split, Mapping):
        return dict(details)
    # Members of one split share its long texts, also in the file of an ensemble.
    shared = {k: sys.intern(v) if isinstance(v, str) else v for k, v in split.items()}
    return {**details, "split": shared}


def _from_table(table: Path, settings: Mapping[str, Any]) -> SplitRecord:
    columns = ("path", "label", "split", "fold", "group", "hash")
    read = read_csv_table(table, known=columns, required=columns, error=CheckpointError)
    rows = [row for _, row in read.rows]
    try:
        names = tuple(sorted({row["label"] for row in rows}))
        label_of = {name: label for label, name in enumerate(names)}
        images = [
            ImageRef(row["hash"] or NO_ID, normalize("NFC", row["path"]), label_of[row["label"]])
            for row in rows
        ]
        standings = [
            Standing(SIDES[SIDES.index(row["split"])], int(row["fold"]) if row["fold"] else None)
            for row in rows
        ]
    except ValueError as error:
        raise CheckpointError(
            f"Expected the fit's split in {table}, found it damaged ({error}); "
            "give --data.manifest with the sides of the images."
        ) from error
    listed = settings.get("manifest") is not None
    return SplitRecord(settings, names, tuple(images), tuple(standings), listed)
