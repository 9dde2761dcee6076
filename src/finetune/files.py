"""The one place that writes files: beside the target, synced, renamed; whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.errors import OutputError


@contextmanager
def atomic_write(path: str | Path, *, exclusive: bool = False) -> Iterator[Path]:
    """A new, empty file beside the target, which takes the target's place if the block ends well.

    Readers see the old file or the new one, never a part of it, also after a power cut. The name
    beside is random and is created by this process alone, so it follows no link that lies there and
    collides with no other process or host. Whatever fails, nothing of it stays behind.

    Close every map of the target before the block ends: Windows cannot replace a mapped file.

    Args:
        path: the target; a link there is replaced, not followed.
        exclusive: refuse a target that has come into being meanwhile instead of replacing it.

    Yields:
        The path to write to, with the ending of the target.

    Raises:
        OutputError: the folder does not exist or cannot be written, the disk is full, or, where
            ``exclusive``, the target exists.
    """
    path = Path(path)
    beside = _name_beside(path)
    try:
        with _told_of(path, beside):
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield beside
            sync(beside)
            if exclusive:
                _publish_once(beside, path)
            else:
                os.replace(beside, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # a folder that has vanished took the file along
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, exclusive: bool = False) -> Iterator[Path]:
    """A new, empty folder beside the target, which takes the target's place if the block ends well.

    In a folder that is there already, files of the same names are replaced, each as a whole, and
    all others stay.

    Args:
        path: the target.
        exclusive: refuse a folder with something in it.

    Yields:
        The folder to write to.

    Raises:
        OutputError: as for :func:`atomic_write`; also where the target, or a folder in it that is
            written to, is a link.
    """
    path = Path(path)
    beside = _name_beside(path)
    try:
        with _told_of(path, beside):
            beside.mkdir()
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    sync(file)
            if exclusive or not os.path.lexists(path):
                _rename_folder(beside, path)
            else:
                _merge(beside, path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file; see :func:`atomic_write`."""
    with atomic_write(path) as beside:
        beside.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file in UTF-8 with the line ends of the text; see :func:`atomic_write`.

    Lone surrogates, which stand for bytes of file names that are no UTF-8, are written as those
    bytes.
    """
    write_bytes(path, text.encode("utf-8", errors="surrogateescape"))


def write_copy(path: str | Path, source: str | Path) -> None:
    """Write a whole file, as another one is; see :func:`atomic_write`."""
    with atomic_write(path) as beside:
        shutil.copyfile(source, beside)


def write_link(path: str | Path, target: str) -> None:
    """Make a link to a folder, or have the one that is there lead to it.

    Raises:
        OSError: the file system has no links, or they are not allowed.
    """
    beside = _name_beside(Path(path))
    try:
        beside.symlink_to(target, target_is_directory=True)
        os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def append_text(path: str | Path, text: str) -> None:
    """Add to the end of a file in UTF-8, by one write, for tables that grow row by row.

    Raises:
        OutputError: the file cannot be written; what it held stays.
    """
    path = Path(path)
    with _told_of(path, path), path.open("ab") as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


def sync(path: str | Path) -> None:
    """Have the disk hold what was written to a file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.stem[:80]}-{secrets.token_hex(8)}{path.suffix}")


@contextmanager
def _told_of(path: Path, beside: Path) -> Iterator[None]:
    """Say of every failure in one line which target could not be written."""
    try:
        yield
    except OutputError as error:  # of a writer that was given the name beside
        raise OutputError(str(error).replace(str(beside), str(path))) from error
    except OSError as error:
        about = Path(str(error.filename or beside))
        ours = {beside, path} & {about, *about.parents}
        if not ours or isinstance(error, BrokenPipeError):
            raise  # something else failed in the block, such as reading
        raise OutputError(
            f"Expected to write {path}, found that it cannot be written "
            f"({error.strerror or error}); make room, or name another place."
        ) from error


def _rename_folder(beside: Path, path: Path) -> None:
    """Give the folder its name unless something is there."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"Expected no folder yet at {path}, found one; name another, or overwrite it knowingly."
        )
    if path.is_dir():
        path.rmdir()  # Windows renames onto nothing, not even an empty folder
    os.rename(beside, path)


def _merge(beside: Path, path: Path) -> None:
    """Move each file to its place in a folder that is there, the deepest first."""
    folders = [beside, *sorted(each for each in beside.rglob("*") if each.is_dir())]
    places = [path / folder.relative_to(beside) for folder in folders]
    for place in places:
        if place.is_symlink():
            raise OutputError(
                f"Expected a folder at {place}, found a link to {os.readlink(place)}; remove it."
            )
        place.mkdir(exist_ok=True)
    for folder, place in reversed(list(zip(folders, places, strict=True))):
        for file in sorted(each for each in folder.iterdir() if not each.is_dir()):
            os.replace(file, place / file.name)


def _publish_once(beside: Path, path: Path) -> None:
    """Give the file its name unless somebody has it."""
    try:
        os.link(beside, path)  # unlike a rename, never replaces
        return
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not os.path.lexists(path):
            os.replace(beside, path)
            return
    raise OutputError(
        f"Expected no file yet at {path}, found one; name another, or overwrite it knowingly."
    )


def _sync_folder(folder: Path) -> None:
    """Have the disk hold the new name too, where folders can be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_left_behind(folder: str | Path) -> None:
    """Remove what processes that were killed were writing into a folder that is ours alone."""
    for path in Path(folder).glob(".*"):
        if _BESIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


_BESIDE = re.compile(r"\..*-[0-9a-f]{16}(\.[^.]*)?", re.DOTALL)  # the names of atomic_write
