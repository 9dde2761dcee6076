"""Shards and tables of an object store, copied once into a folder beside the caches.

A fit reads each image at its place, in every epoch; a store would be asked for each of them. So
what a root names is copied as files, each as a whole or not at all, and is from then on a folder of
shards of this machine. What has changed on the store is copied again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from glob import has_magic
from pathlib import Path

from finetune import storage
from finetune.cache_dir import cache_folder, short_hash
from finetune.data.image_blocks import numbered
from finetune.data.shard_files import check_shards, is_shard
from finetune.errors import DataError, ImageFolderError
from finetune.files import atomic_write
from finetune.long_steps import told

FOLDER = "finetune-shards"
CHUNK_BYTES = 2**20
_COLLAPSED = re.compile(r"^(\w\w+):/+")  # what a path makes of s3://


def brought_here(
    root: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """A root of this machine: itself, or the folder that the shards of an address are copied to.

    Args:
        root: as for :func:`finetune.data.shard_files.shards_at`, or such a pattern or folder of a
            store: ``s3://bucket/shards/{0000..0123}.tar``.
        cache_dir: beside whose caches the copies lie, instead of the platform's.

    Raises:
        ImageFolderError: no shards there, or such as have to be unpacked.
        DataError: the store refuses or breaks off, or the disk has no room; what is copied stays.
    """
    address = _COLLAPSED.sub(r"\1://", os.fspath(root), count=1)
    if not storage.is_remote(address):
        return Path(storage.local_path(address))
    wanted = {storage.base_name(entry.address): entry for entry in _shards_of(address)}
    folder = cache_folder(cache_dir).with_name(FOLDER) / short_hash(address)
    stamps = {name: storage.stamp_of(entry.address) for name, entry in wanted.items()}
    missing = {n: e for n, e in wanted.items() if not _noted(folder, n, stamps[n]).is_file()}
    _make_room(folder, sum(entry.size or 0 for entry in missing.values()), address)
    for name, entry in told(missing.items(), "Copying shards", len(missing)):
        for old in folder.iterdir():
            if old.name.startswith(f".{name}."):
                old.unlink()
        _copy(entry, folder / name)
        _noted(folder, name, stamps[name]).touch()
    for path in folder.iterdir():  # what the store has no more
        if is_shard(path.name) and path.name not in wanted:
            path.unlink()
    return folder


def _shards_of(address: str) -> Iterator[storage.Entry]:
    """What the root names, in order.

    Raises:
        ImageFolderError: two of one name, nothing, or other files.
    """
    found: list[storage.Entry] = []
    for each in numbered(address):
        if has_magic(each):
            found += storage.matches(each)
        elif is_shard(each):
            with suppress(FileNotFoundError):
                found.append(storage.Entry(each, storage.size_of(each)))
                continue
            raise ImageFolderError(f"Expected a shard at {each}, found nothing; check --data.root.")
        else:
            found += [entry for entry in storage.listed(each) if is_shard(entry.address)]
    names = [storage.base_name(entry.address) for entry in found]
    if not found or len(set(names)) < len(names):
        raise ImageFolderError(
            f"Expected shards of different names at {address} to learn from, found "
            f"{'some twice' if found else 'none'}; name tar shards or Parquet tables, such as "
            "s3://bucket/shards/{0000..0123}.tar (`finetune predict` reads images of stores)."
        )
    check_shards(address, [entry.address for entry in found])
    yield from found


def _noted(folder: Path, name: str, stamp: str) -> Path:
    """A file that is there where a copy is whole, of what the store has now."""
    return folder / f".{name}.{stamp}"


def _make_room(folder: Path, needed: int, address: str) -> None:
    with storage.told(str(folder), writing=True):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"Expected room for {needed / 1e9:.1f} GB of {address} in {folder}, found "
            f"{free / 1e9:.1f}; name another --data.cache_dir."
        )


def _copy(entry: storage.Entry, place: Path) -> None:
    """One file, whole or not at all."""
    with atomic_write(place) as beside, beside.open("wb") as copy:
        with storage.told(entry.address), storage.opened(entry.address) as file:
            shutil.copyfileobj(file, copy, CHUNK_BYTES)
        if copy.tell() != entry.size:
            raise DataError(
                f"Expected {entry.size:,} bytes at {entry.address}, found {copy.tell():,}; read it "
                "again."
            )
