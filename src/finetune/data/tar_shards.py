"""Images in a tar file, as WebDataset writes shards, read as a stream or at their places.

The standard library takes a damaged header in the middle of a file for its end. Here it is an
error, and so is a file that ends without the mark of its end.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, NamedTuple, Self

from finetune import storage
from finetune.cache_dir import file_stamp
from finetune.data.walk import Walk, why_hidden
from finetune.errors import ImageError
from finetune.spec.images import SEPARATOR
from finetune.spec.protocols import StreamedImage

SHARDS = (".tar", ".tar.gz", ".tgz")
SIZE_BITS = 40  # of a member's size: up to a tebibyte


@dataclass(frozen=True, slots=True)
class TarBlock:
    """All images of one shard; other members, such as labels, are passed over.

    Attributes:
        address: of the shard.
        size: in bytes.
    """

    address: str
    size: int

    @property
    def identity(self) -> str:
        """Address and size."""
        return f"{self.size} {self.address}"

    @property
    def first(self) -> str:
        """The shard."""
        return self.address

    def images(self) -> Iterator[StreamedImage]:
        """Each image, called ``shard.tar::member``."""
        is_image = Walk().is_image
        for member, content in _members(self.address):
            if is_image(member) and why_hidden(member.rpartition("/")[2]) is None:
                yield StreamedImage(f"{self.address}{SEPARATOR}{member}", content.__bytes__)


def _members(address: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file, one at a time."""
    number = 0
    with storage.told(address):
        try:
            with storage.opened(address) as file, _stream(file) as shard:
                while (info := shard.next()) is not None:
                    shard.members.clear()  # type: ignore[attr-defined]  # it would keep all
                    content = shard.extractfile(info) if info.isreg() else None
                    if content is not None:
                        number += 1
                        yield info.name, content.read()
        except (tarfile.TarError, EOFError, UnicodeError) as error:
            raise ImageError(
                f"Expected a whole tar file at {address}, found it damaged after {number} files "
                f"({error}); write or copy it again."
            ) from error
        except FileNotFoundError as error:
            raise ImageError(f"Expected a tar file at {address}: it is gone.") from error


class Place(NamedTuple):
    """Where a member's content lies in its shard, in bytes."""

    offset: int
    size: int


class Places(Mapping[str, Place]):
    """Places by name, each held as one number: a shard of a million images has as many."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def add(self, name: str, place: Place) -> None:
        """Note where a member lies."""
        self._numbers[name] = place.offset << SIZE_BITS | place.size

    def __getitem__(self, name: str) -> Place:
        number = self._numbers[name]
        return Place(number >> SIZE_BITS, number & (1 << SIZE_BITS) - 1)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Where each member lies.

    Attributes:
        places: of regular files, by name, in order.
        left_out: other members, and why.
        damage: what ends the shard too early; empty where it is whole.
    """

    places: Mapping[str, Place]
    left_out: Mapping[str, str]
    damage: str = ""


def index_of(shard: Path) -> TarIndex:
    """The members of an uncompressed shard of this machine, found once in each process.

    Raises:
        OSError: it cannot be opened.
    """
    return _index(os.path.abspath(shard), file_stamp(shard))


@cache
def _index(shard: str, stamp: tuple[int, ...]) -> TarIndex:
    """By its content's stamp: headers alone are read."""
    places = Places()
    left_out: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:", tarinfo=_StrictInfo) as file:
            while (info := file.next()) is not None:
                file.members.clear()  # type: ignore[attr-defined]  # it would keep all
                name = PurePosixPath(info.name).as_posix()
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    left_out[name] = "not a regular file"
                elif ".." in PurePosixPath(name).parts:
                    left_out[name] = "a name that leads out of the shard"
                elif name in places:
                    left_out[name] = "twice in the shard: the first one counts"
                else:
                    places.add(name, Place(info.offset_data, info.size))
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        return TarIndex(places, left_out, f"is damaged after {len(places)} files ({error})")
    return TarIndex(places, left_out)


def _stream(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictInfo)


class _StrictInfo(tarfile.TarInfo):
    """A member's header; damage is never taken for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next header."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # the mark
            raise
        except HeaderError as error:
            raise ReadError(str(error)) from error
