"""Images in a tar file, as WebDataset writes shards, read as a stream from the first to the last.

The standard library takes a damaged header in the middle of a file for its end. Here it is an
error, and so is a file that ends without the mark of its end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Self

from finetune import storage
from finetune.data.walk import Walk, why_hidden
from finetune.errors import ImageError
from finetune.spec.protocols import StreamedImage

SHARDS = (".tar", ".tar.gz", ".tgz")
SEPARATOR = "::"  # between the shard and the image in it


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
