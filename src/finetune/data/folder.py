"""Find the labelled pictures of a folder, and say about every other file why it is not used.

Layouts::

    ROOT/<class>/**/*.jpg                          one unsplit set
    ROOT/train|val|test/<class>/**/*.jpg           split by folders; also valid, validation, ...

The folder right below the root (or below the split) is the class; deeper folders belong to it.
Nothing is opened here: :mod:`finetune.data.health` tells whether a file really is a picture.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from finetune.errors import ImageFolderError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .bmp .webp .tif .tiff .gif .ppm .pgm".split()  # noqa: SIM905
)
_Found = tuple[Split | None, str, str]  # split, class name, file

JUNK_NAMES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One picture: its file, the index of its class, and on which side it stands.

    Attributes:
        path: the file, as found (not resolved).
        label: index into the class names of the folder that it belongs to.
        group: pictures of one group (a patient, a burst, a video) stay on one side of every split.
        split: None as long as the folder is unsplit.
        fold: number of the cross-validation fold that holds the picture out, if there are folds.
    """

    path: Path
    label: int
    group: str | None = None
    split: Split | None = None
    fold: int | None = None


@dataclass(frozen=True, slots=True)
class UnusedFile:
    """A file or folder that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """All labelled pictures under a root, in a fixed order, and everything left out.

    ``class_names`` are those with at least one picture in any split, sorted by code point, in
    Unicode's composed form (NFC); ``images`` are sorted by split, class and file name.
    """

    root: Path
    class_names: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    unused: tuple[UnusedFile, ...] = ()
    empty_classes: tuple[str, ...] = ()
    content_hashes: dict[Path, str] = field(default_factory=dict, repr=False)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have pictures, in the order train, val, test; () if unsplit."""
        present = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in present)

    @property
    def is_split(self) -> bool:
        """Whether the pictures already stand on sides."""
        return bool(self.splits)

    def of_split(self, split: Split) -> tuple[LabelledImage, ...]:
        """The pictures of one split, in order."""
        return tuple(image for image in self.images if image.split == split)

    def classes_of(self, split: Split | None) -> tuple[str, ...]:
        """The classes with at least one picture in a split (None: in the unsplit set)."""
        labels = {image.label for image in self.images if image.split == split}
        return tuple(self.class_names[label] for label in sorted(labels))

    def with_class_names(self, class_names: Sequence[str]) -> ImageFolder:
        """The same pictures with their indexes in another vocabulary, such as a checkpoint's.

        Raises:
            ImageFolderError: a class of this folder is not in the vocabulary.
        """
        if tuple(class_names) == self.class_names:
            return self
        index = {normal_name(name): label for label, name in enumerate(class_names)}
        extra = [name for name in self.class_names if name not in index]
        if extra:
            raise ImageFolderError(
                f"Expected only the classes {_listed(class_names)} in {self.root}, found also "
                f"{_listed(extra)}; rename or move away these folders, or train with them."
            )
        labels = [index[name] for name in self.class_names]
        images = tuple(replace(image, label=labels[image.label]) for image in self.images)
        return replace(self, class_names=tuple(class_names), images=images)


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


def scan_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Find all pictures under ``root`` and the class of each.

    Links are followed, but no folder is read twice. Split folders are recognised when there is a
    training folder, or when nothing but split folders lies in the root.

    Raises:
        ImageFolderError: no such folder, two folders for one split, or no picture in any class.
    """
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ImageFolderError(
            f"Expected a folder of pictures at {root}, found {found}; check --data.root."
        )
    walk = _Walk()
    folders = walk.folders_in(root, "outside any class folder")
    split_folders = _split_folders(root, folders)
    found_images: list[_Found]
    if split_folders:
        for folder in folders:
            if folder not in split_folders.values():
                walk.leave_out(folder, "beside the split folders, so in no split")
        found_images = [
            (split, name, path)
            for split, folder in split_folders.items()
            for name, path in walk.class_files(folder, f"outside any class folder of {split}")
        ]
    else:
        found_images = [(None, name, path) for name, path in walk.classes(folders)]
    return _assemble(root, walk, found_images)


def images_below(folder: str | os.PathLike[str]) -> list[Path]:
    """All images below a folder, as a fit would find them: links followed, no folder read twice."""
    return [Path(path) for path in _Walk().images_below(os.fspath(folder))]


def _assemble(root: Path, walk: _Walk, found: list[_Found]) -> ImageFolder:
    if not found:
        raise ImageFolderError(_no_pictures_message(root, walk))
    class_names = sorted({name for _, name, _ in found})
    label_of = {name: label for label, name in enumerate(class_names)}
    images = [LabelledImage(Path(path), label_of[name], None, split) for split, name, path in found]
    return ImageFolder(
        root=root,
        class_names=tuple(class_names),
        images=tuple(sorted(images, key=_order)),
        unused=tuple(walk.unused),
        empty_classes=tuple(sorted(walk.empty - label_of.keys())),
    )


def _order(image: LabelledImage) -> tuple[int, int]:
    # Within a class the walk's order (sorted by name) stays, for Python's sort is stable.
    return (SPLITS.index(image.split) if image.split else 0, image.label)


def _no_pictures_message(root: Path, walk: _Walk) -> str:
    flat = sum(unused.reason.startswith("outside any class") for unused in walk.unused)
    seen = f"{flat} files outside any class folder" if flat else "none"
    return (
        f"Expected pictures in {root}/<class>/ or {root}/train/<class>/, found {seen}; "
        f"put each class's pictures ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}) "
        "into a folder named after the class."
    )


def _split_folders(root: Path, folders: list[str]) -> dict[Split, str]:
    """The folder of each split; empty if the root's folders are classes."""
    named = [(SPLIT_FOLDERS.get(os.path.basename(path).casefold()), path) for path in folders]
    recognised = [(split, path) for split, path in named if split]
    if not recognised or (
        len(recognised) < len(folders) and not any(split == "train" for split, _ in recognised)
    ):
        return {}
    result: dict[Split, str] = {}
    for split, path in recognised:
        if split in result:
            names = f"{os.path.basename(result[split])} and {os.path.basename(path)}"
            raise ImageFolderError(
                f"Expected one folder for the split {split} in {root}, found {names}; "
                "merge them or move one away."
            )
        result[split] = path
    return result


class _Walk:
    """Reads folders in a fixed order, each once, and remembers what it leaves out.

    Works on plain strings: making a Path of every entry would take most of the time.
    """

    def __init__(self) -> None:
        self.unused: list[UnusedFile] = []
        self.empty: set[str] = set()
        self._suffixes = readable_suffixes()
        self._visited: set[tuple[int, int]] = set()

    def leave_out(self, path: str, reason: str) -> None:
        self.unused.append(UnusedFile(Path(path), reason))

    def class_files(self, folder: str, reason_outside: str) -> Iterator[tuple[str, str]]:
        """``(class name, file)`` of all pictures in the class folders of ``folder``."""
        return self.classes(self.folders_in(folder, reason_outside))

    def classes(self, folders: list[str]) -> Iterator[tuple[str, str]]:
        for folder in folders:
            name = normal_name(os.path.basename(folder))
            found = False
            for path in self.images_below(folder):
                found = True
                yield name, path
            if not found:
                self.empty.add(name)

    def folders_in(self, folder: str | Path, reason_outside: str) -> list[str]:
        """The folders in a folder; the files beside them are left out."""
        folders, files = self._entries(folder)
        for path in files:
            self.leave_out(path, reason_outside)
        return folders

    def images_below(self, top: str) -> Iterator[str]:
        pending = [top]
        while pending:
            folders, files = self._entries(pending.pop())
            pending.extend(reversed(folders))
            for path in files:
                suffix = os.path.splitext(path)[1].lower()
                if suffix in self._suffixes:
                    yield path
                else:
                    self.leave_out(path, _why_not_read(suffix))

    def _entries(self, folder: str | Path) -> tuple[list[str], list[str]]:
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
            self.leave_out(str(folder), f"cannot be listed: {error.strerror}")
            return folders, files
        for entry in entries:
            if reason := _why_hidden(entry.name):
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


def _why_hidden(name: str) -> str | None:
    if name.startswith("._"):
        return "AppleDouble file: macOS's attributes of another file"
    if name.startswith("."):
        return "hidden"
    if name.casefold() in JUNK_NAMES:
        return "written by the operating system"
    return None


def _why_not_read(suffix: str) -> str:
    if suffix in (".heic", ".heif"):
        return f"{suffix} needs the package pillow-heif"
    if suffix == ".avif":
        return "the installed Pillow cannot read .avif"
    return f"not a picture by its ending ({suffix or 'none'})"


def _listed(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
