"""Folders read in a fixed order, each once: the images in them, and why the rest is left out."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from finetune.errors import ImageFolderError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .bmp .webp .tif .tiff .gif .ppm .pgm".split()  # noqa: SIM905
)
# Images all the same, which somebody put there to be used: of those that are not, one is told.
_NEEDED = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "Pillow with AVIF"}
_UNREAD_IMAGES = frozenset(
    ".jp2 .j2k .jpe .psd .svg .dng .cr2 .cr3 .nef .arw .orf .rw2 .dcm .czi .nd2 .lif".split()  # noqa: SIM905
)
JUNK_NAMES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})


@dataclass(frozen=True, slots=True)
class UnusedFile:
    """A file or folder that is not used, and why.

    ``expected`` says that whoever put it there will think that it is: an image of another format.
    """

    path: Path
    reason: str
    expected: bool = False


def normal_name(name: str) -> str:
    """A class name in Unicode's composed form, so that names from macOS and Linux are equal."""
    return unicodedata.normalize("NFC", name)


@cache
def readable_suffixes() -> frozenset[str]:
    """Endings (lower case, with dot) that the installed Pillow can read."""
    from PIL import features

    avif = {".avif"} if features.check("avif") else set()
    heic = {".heic", ".heif"} if find_spec("pillow_heif") else set()
    return IMAGE_SUFFIXES | avif | heic


def images_below(folder: str | os.PathLike[str]) -> list[Path]:
    """All images in a folder and below, as :func:`scan_folder` would find them in a class.

    Raises:
        ImageFolderError: a folder that cannot be listed.
    """
    walk = Walk()
    found = [Path(path) for path in walk.images_below(os.fspath(folder))]
    if walk.unlisted:
        raise ImageFolderError(unlisted_message(walk))
    for line in lines_about_expected(walk.unused):
        warnings.warn(f"{os.fspath(folder)}: {line}", stacklevel=2)
    return found


def lines_about_expected(unused: Iterable[UnusedFile]) -> list[str]:
    """What is left out although one would think that it is used: a line a reason, with numbers."""
    numbers = Counter(each.reason for each in unused if each.expected)
    return [f"{number} not used: {reason}" for reason, number in numbers.items()]


def unlisted_message(walk: Walk) -> str:
    """An error's message about folders that cannot be listed."""
    first = walk.unlisted[0]
    return (
        f"Expected folders that can be listed, found {first.path}, which {first.reason}; "
        "change its rights, or move it away."
    )


def holds_images_alone(folder: str) -> bool:
    """Whether images lie in a folder itself, and no class folder does."""
    walk = Walk()
    folders, files = walk.entries(folder)
    return not folders and any(walk.is_image(path) for path in files)


class Walk:
    """Reads folders in a fixed order, each once, and remembers what it leaves out.

    Works on plain strings: making a Path of every entry would take most of the time.
    """

    def __init__(self) -> None:
        self.unused: list[UnusedFile] = []
        self.unlisted: list[UnusedFile] = []
        self.empty: set[str] = set()
        self._suffixes = readable_suffixes()
        self._visited: set[tuple[int, int]] = set()

    def leave_out(self, path: str, reason: str, *, expected: bool = False) -> None:
        """Note what is not used, and why."""
        self.unused.append(UnusedFile(Path(path), reason, expected))

    def class_files(self, folder: str, reason_outside: str) -> Iterator[tuple[str, str]]:
        """``(class name, file)`` of all images in the class folders of ``folder``."""
        return self.classes(self.folders_in(folder, reason_outside))

    def classes(self, folders: list[str]) -> Iterator[tuple[str, str]]:
        """``(class name, file)`` of all images in these class folders."""
        for folder in folders:
            name = normal_name(os.path.basename(folder))
            found, unlisted = False, len(self.unlisted)
            for path in self.images_below(folder):
                found = True
                yield name, path
            if not found and len(self.unlisted) == unlisted:
                self.empty.add(name)

    def folders_in(self, folder: str | Path, reason_outside: str) -> list[str]:
        """The folders in a folder; the files beside them are left out."""
        folders, files = self.entries(folder)
        for path in files:
            self.leave_out(path, reason_outside)
        return folders

    def is_image(self, path: str) -> bool:
        """Whether a file's ending is that of an image."""
        return os.path.splitext(path)[1].lower() in self._suffixes

    def images_below(self, top: str) -> Iterator[str]:
        """All images in a folder and below, each folder's own first."""
        pending = [top]
        while pending:
            folders, files = self.entries(pending.pop())
            pending.extend(reversed(folders))
            for path in files:
                if self.is_image(path):
                    yield path
                else:
                    suffix = os.path.splitext(path)[1].lower()
                    is_image = suffix in _NEEDED or suffix in _UNREAD_IMAGES
                    self.leave_out(path, _why_not_read(suffix), expected=is_image)

    def entries(self, folder: str | Path) -> tuple[list[str], list[str]]:
        """Folders and files in a folder, sorted by name, hidden ones and junk left out."""
        folders: list[str] = []
        links: list[str] = []
        files: list[str] = []
        try:
            if not self._enter(folder):
                return folders, files
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=_entry_name)
        except OSError as error:
            self.unlisted.append(UnusedFile(Path(folder), f"cannot be listed: {error.strerror}"))
            return folders, files
        for entry in entries:
            if reason := why_hidden(entry.name):
                self.leave_out(entry.path, reason)
                continue
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(entry.path)
            elif kind == "file":
                files.append(entry.path)
            else:
                self.leave_out(entry.path, "a broken link, or not a regular file")
        return folders + links, files  # real folders first: a link never takes a folder's place

    def _enter(self, folder: str | Path) -> bool:
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        if key in self._visited:
            self.leave_out(str(folder), "a link to a folder that is read already")
            return False
        self._visited.add(key)
        return True


def _entry_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "neither"]:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "neither"
    except OSError:  # a link to itself, or into a folder that must not be entered
        return "neither"


def why_hidden(name: str) -> str | None:
    """The reason why a file or folder of this name is passed over; None where it is not."""
    if name.startswith("._"):
        return "AppleDouble file: macOS's attributes of another file"
    if name.startswith("."):
        return "hidden"
    if name.casefold() in JUNK_NAMES:
        return "written by the operating system"
    return None


def _why_not_read(suffix: str) -> str:
    if suffix in _NEEDED:
        return f"{suffix} needs the package {_NEEDED[suffix]}"
    if suffix in _UNREAD_IMAGES:
        return f"{suffix} is not read; convert it to PNG, TIFF or JPEG"
    return f"not an image by its ending ({suffix or 'none'})"
