"""Cached files that are provably our own: deleting one can never hit what somebody else keeps.

All caches lie in one folder of its own name, marked by a ``CACHEDIR.TAG``, below the platform's
cache folder or the folder that the user names. A cached file is created once, under a random name,
and never replaced. It is ours if its name has our pattern, it is a regular file of this user, and
it begins with our header; nothing else is read, counted or deleted, and no link is followed.

Files are private to the user until the user opens the folder itself to others (``chmod``): then
new files get the folder's permissions, and those of its other users are read too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from finetune.spec.images import place_of

NAME = "finetune-cache"
TAG = "CACHEDIR.TAG"
SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # of https://bford.info/cachedir/
TAG_TEXT = SIGNATURE + b"\n# What finetune can compute again; it may be deleted at any time.\n"
OUR_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.[a-z]+")
HEADER_BYTES = 64
CLOCK_STEP_NS = 20_000_000  # twice the longest that systems have
# Planted links are not followed, and a FIFO is not waited for; where the system knows these.
_SAFE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Our own folder below the given one or the platform's cache folder; not created here."""
    below = user_cache_path("finetune", appauthor=False) if cache_dir is None else Path(cache_dir)
    return below / NAME


def short_hash(text: str) -> str:
    """16 hexadecimal digits that name a file after a text."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def file_stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """What changes whenever a file's content does: size, times of change, inode, device.

    Of an image in a shard or table, those of that file.

    Of the two times the second cannot be set back. It counts in steps of the system's clock: a
    file that was changed just now is waited for, so that its next change shows.

    Raises:
        OSError: there is no such file.
    """
    path, _ = place_of(path)
    found = os.stat(path)
    if 0 <= time.time_ns() - found.st_ctime_ns < CLOCK_STEP_NS:
        time.sleep(CLOCK_STEP_NS / 1e9)
        found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


class CachedFiles:
    """The files of one kind of cache, named ``GROUP-RANDOM.ENDING``.

    Args:
        cache_dir: what the user names; None for the platform's cache folder.
        kind: of cache, which names the folder.
        version: of the files' format; files of another one are deleted in their turn, not read.
    """

    def __init__(self, cache_dir: str | os.PathLike[str] | None, kind: str, version: int) -> None:
        self.root = cache_folder(cache_dir)
        self.folder = self.root / kind
        self._mark = f"finetune cache: {kind}, format ".encode()
        self.header = (self._mark + f"{version}\n".encode()).ljust(HEADER_BYTES)

    def listed(self, group: str, ending: str) -> list[Path]:
        """Files that may be a group's, by their names; :meth:`open` decides."""
        return self._candidates(f"{group}-", ending)

    def open(self, path: Path, *, any_version: bool = False) -> BinaryIO:
        """A file of ours, to be read from behind its header.

        Raises:
            OSError: it is not there, not ours, or of another version where that matters.
        """
        file = _opened(path, os.O_RDONLY)
        begin = self._mark if any_version else self.header
        try:
            trusted = os.fstat(file.fileno()).st_uid == _user() or self._place()[1]
            if not trusted or not file.read(HEADER_BYTES).startswith(begin):
                raise PermissionError(f"Expected a cached file of ours, found another: {path}")
        except BaseException:
            file.close()
            raise
        return file

    def new_path(self, group: str, ending: str) -> Path:
        """For a file of a group: a name that nobody else has."""
        return self.folder / f"{group}-{uuid.uuid4().hex}{ending}"

    def create(self, path: Path) -> BinaryIO:
        """The new file at a path, unbuffered, its header written.

        Raises:
            OSError: no room, no permission, or the place is not ours.
        """
        mode = self._make() & 0o666
        file = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            _permit(path, mode)
            write_all(file, self.header)
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    def remove(self, path: Path) -> None:
        """Delete a file, if it is ours; maps of it stay valid."""
        with suppress(OSError):  # gone already, or Windows, which keeps files that are open
            self.open(path, any_version=True).close()
            path.unlink()

    def used(self, path: Path) -> None:
        """Note that a file was of use now: the longest unused go first."""
        with suppress(OSError):  # evicted meanwhile, or a cache that only others may write
            os.utime(path)

    def evict(self, limit_bytes: int, *, keep: str = "") -> int:
        """Delete the longest unused of our files until fewer bytes than the limit remain.

        Files that differ in their ending alone go together; those whose names begin with ``keep``
        stay. Returns the bytes that remain.
        """
        together: dict[str, list[tuple[float, int, Path]]] = defaultdict(list)
        for path in self._candidates():
            with suppress(OSError), self.open(path, any_version=True) as file:
                found = os.fstat(file.fileno())
                together[path.stem].append((found.st_mtime, found.st_size, path))
        total = sum(size for files in together.values() for _, size, _ in files)
        for stem, files in sorted(together.items(), key=lambda item: max(item[1])):
            if total < limit_bytes:
                break
            for _, size, path in () if keep and stem.startswith(keep) else files:
                self.remove(path)
                total -= 0 if path.exists() else size
        return total

    def free_bytes(self) -> int:
        """What the disk has left where the files are or would be; 0 where none can be written."""
        try:
            if os.path.lexists(self.root):
                self._place()
            there = self.folder
            while not there.exists():
                there = there.parent
            writable = there.is_dir() and os.access(there, os.W_OK)
            return shutil.disk_usage(there).free if writable else 0
        except OSError:
            return 0

    def _candidates(self, beginning: str = "", ending: str = "") -> list[Path]:
        """Regular files with names like ours, in the order of their names."""
        try:
            self._place()
            if not stat.S_ISDIR(os.lstat(self.folder).st_mode):
                return []
            with os.scandir(self.folder) as entries:
                return sorted(
                    Path(entry.path)
                    for entry in entries
                    if entry.name.startswith(beginning)
                    and entry.name.endswith(ending)
                    and OUR_NAME.fullmatch(entry.name)
                    and entry.is_file(follow_symlinks=False)
                )
        except OSError:  # not there yet, or nothing that we may look into
            return []

    def _place(self) -> tuple[int, bool]:
        """Permissions of our root, and whether it is shared with other users.

        Raises:
            OSError: it does not exist, is no folder, or is another user's who does not share it.
        """
        found = os.lstat(self.root)
        mode = stat.S_IMODE(found.st_mode)
        # Where all may write, as in /tmp, a stranger's open folder may be a trap.
        known = found.st_uid in (_user(), 0) or not self.root.parent.stat().st_mode & stat.S_IWOTH
        shared = known and bool(mode & (stat.S_IWGRP | stat.S_IWOTH))
        if not stat.S_ISDIR(found.st_mode) or not (shared or found.st_uid == _user()):
            raise PermissionError(f"Expected a cache of this user, found another at {self.root}")
        return mode, shared

    def _make(self) -> int:
        """Have the folder and its tag; the permissions that go with it."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.root.mkdir(mode=0o700)
        mode, _ = self._place()
        _tag(self.root, mode)
        try:
            self.folder.mkdir(mode=0o700)
            _permit(self.folder, mode)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(self.folder).st_mode):
                raise
        return mode


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write to an unbuffered file, which may take less at once.

    Raises:
        OSError: the disk is full.
    """
    rest = memoryview(data)
    rest = rest.cast("B") if rest.nbytes else rest[:0]
    while len(rest):
        rest = rest[file.write(rest) :]


def _tag(root: Path, mode: int) -> None:
    """Mark our folder as a cache; a stranger's of the same name is left alone."""
    names = os.listdir(root)
    if names and TAG not in names:
        raise FileExistsError(f"Expected an empty folder or a cache of ours at {root}")
    with _opened(root / TAG, os.O_RDWR | os.O_CREAT) as file:
        text = file.read(len(SIGNATURE))
        if not text:  # new, or of a process that was killed right here
            _permit(root / TAG, mode & 0o666)
            write_all(file, TAG_TEXT)
        elif text != SIGNATURE:
            raise FileExistsError(f"Expected a cache of ours at {root}, found another {TAG}")


def _opened(path: Path, flags: int) -> BinaryIO:
    """A regular file, unbuffered; a link is an error, and so is whatever else lies there."""
    descriptor = os.open(path, flags | _SAFE, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileExistsError(f"Expected a file, found something else at {path}")
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _permit(path: Path, mode: int) -> None:
    if mode & 0o077:  # shared: the process's own mask does not count
        with suppress(OSError):  # a file system without permissions
            os.chmod(path, mode)


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0
