"""Which image: known by its whole content, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One labelled image of a collection.

    Attributes:
        id: of its whole content, 32 hexadecimal digits; see :func:`content_id`.
        path: below the collection's root, with slashes, in Unicode's composed form (NFC).
        label: index into the class names of what it belongs to.
    """

    id: str
    path: str
    label: int


def content_id(content: bytes) -> str:
    """BLAKE2b of the whole content with 128 bits, as 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=ID_BYTES).hexdigest()


def file_id(path: str | os.PathLike[str]) -> str:
    """:func:`content_id` of a file of any size, read once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=ID_BYTES)
