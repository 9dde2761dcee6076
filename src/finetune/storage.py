"""Addresses: a path of this machine, or one of an object store, which fsspec reads and writes.

Nothing is opened but what is named. Whatever a store answers becomes one line of ours.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import IO, Any, NamedTuple

from finetune import files
from finetune.errors import DataError, FinetuneError, MissingPackageError, OutputError, UsageError
from finetune.extras import remedy

# Where an object is there as a whole or not at all, so that what was killed leaves no half of one.
PUT_AS_A_WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
_HERE = ("file://", "local://")


class Entry(NamedTuple):
    """What lies in a folder: its address and its size in bytes; of a folder no size."""

    address: str
    size: int | None


def is_remote(address: str) -> bool:
    """Whether an address is not a path of this machine; ``file://`` is one."""
    return "://" in address and not address.startswith(_HERE)


def local_path(address: str) -> str:
    """The path of this machine that an address without a store is."""
    return next((address.removeprefix(each) for each in _HERE if address.startswith(each)), address)


def below(folder: str, name: str) -> str:
    """The address of what lies in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def base_name(address: str) -> str:
    """The last part of an address."""
    return address.rstrip("/").rpartition("/")[2]


def read(address: str) -> bytes:
    """All of a file.

    Raises:
        FileNotFoundError: there is none. DataError: it cannot be read.
    """
    with told(address), opened(address) as file:
        return file.read()


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """A file to read from, also in the middle; reads that break are the block's to tell.

    Raises:
        FileNotFoundError: there is none. DataError: it cannot be opened.
    """
    with told(address):
        file: IO[bytes]
        if is_remote(address):
            store, path = _store(address)
            file = store.open(path, "rb")
        else:
            file = Path(local_path(address)).open("rb")  # noqa: SIM115 it is closed below
    with file:
        yield file


def size_of(address: str) -> int | None:
    """Bytes of a file; None of a folder.

    Raises:
        FileNotFoundError: nothing is there. DataError: it cannot be told.
    """
    with told(address):
        if not is_remote(address):
            here = Path(local_path(address))
            return None if here.is_dir() else here.stat().st_size
        store, path = _store(address)
        found = store.info(path)
    return None if found["type"] == "directory" else int(found["size"] or 0)


def stamp_of(address: str) -> str:
    """16 hexadecimal digits that change with what a store says of an object.

    Raises:
        FileNotFoundError: nothing is there. DataError: it cannot be told.
    """
    with told(address):
        store, path = _store(address)
        said = store.info(path)
    return hashlib.blake2b(repr(sorted(said.items())).encode(), digest_size=8).hexdigest()


def listed(folder: str) -> list[Entry]:
    """What lies in a folder, by name; nothing where there is no such folder.

    Raises:
        DataError: it cannot be listed.
    """
    with suppress(FileNotFoundError), told(folder):
        if is_remote(folder):
            store, path = _store(folder)
            found = [(_address(store, e["name"]), _size(e)) for e in store.ls(path, detail=True)]
            own = _address(store, path).rstrip("/")
            # Stores may hold an object called as the folder itself.
            return sorted(Entry(*e) for e in found if e[0].rstrip("/") != own)
        with os.scandir(local_path(folder)) as scan:
            entries = [Entry(e.path, None if e.is_dir() else e.stat().st_size) for e in scan]
        return sorted(entries)
    return []


def matches(pattern: str) -> list[Entry]:
    """What a pattern names, by name.

    Raises:
        DataError: it cannot be listed.
    """
    if not is_remote(pattern):
        places = sorted(glob(local_path(pattern), recursive=True))
        return [Entry(place, size_of(place) if os.path.exists(place) else 0) for place in places]
    with told(pattern):
        store, path = _store(pattern)
        found: dict[str, Any] = store.glob(path, detail=True)
    return sorted(Entry(_address(store, name), _size(entry)) for name, entry in found.items())


def put(file: Path, address: str) -> None:
    """Have a file of this machine at an address, as a whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    if not is_remote(address):
        files.write_copy(local_path(address), file)
        return
    with told(address, writing=True):
        store, path = _store(address)
        store.put_file(str(file), path)


def make_folder(address: str) -> None:
    """Have a folder that is ours alone; stores make theirs of the names in them.

    Raises:
        UsageError: no store whose objects are there as a whole or not at all.
        OutputError: it cannot be made.
    """
    protocol, _, _ = address.partition("://")
    if not is_remote(address):
        with told(address, writing=True):
            Path(local_path(address)).mkdir(exist_ok=True)
    elif protocol not in PUT_AS_A_WHOLE:
        raise UsageError(
            f"Expected a folder, or an address of {', '.join(PUT_AS_A_WHOLE)}, found {address}; "
            "elsewhere a half-written part could stay."
        )


def remove_left_behind(folder: str) -> None:
    """Remove what was killed was writing into a folder that is ours alone."""
    if not is_remote(folder):
        files.remove_left_behind(local_path(folder))


def remove(address: str) -> None:
    """Remove a file that is ours."""
    with suppress(FileNotFoundError), told(address, writing=True):
        if is_remote(address):
            store, path = _store(address)
            store.rm_file(path)
        else:
            Path(local_path(address)).unlink()


def _store(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path within."""
    import fsspec

    protocol = address.partition("://")[0]
    try:
        # What it lists is not kept: of many images that would be the most of the memory.
        store: Any = fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        raise MissingPackageError(
            f"Expected the package for {protocol}:// addresses, found none ({error}); "
            f"{remedy('remote')}."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"Expected an address such as s3://, gs:// or a path, found {address}; correct it."
        ) from error
    return store, store._strip_protocol(address)


def _address(store: Any, path: str) -> str:
    return str(store.unstrip_protocol(path))


def _size(entry: dict[str, Any]) -> int | None:
    return None if entry["type"] == "directory" else int(entry["size"] or 0)


@contextmanager
def told(address: str, *, writing: bool = False) -> Iterator[None]:
    """Whatever a store or disk raises, in one line.

    Raises:
        FileNotFoundError: a file to read is not there. DataError, OutputError: all else.
    """
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        # A bucket that is missing is no file that is missing: nothing can be written there.
        if isinstance(error, FileNotFoundError) and not writing:
            raise
        kind, do = (OutputError, "write") if writing else (DataError, "read")
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise kind(
            f"Expected to {do} {address}, found that it cannot be ({reason}); check the address, "
            "the credentials and the network."
        ) from error
