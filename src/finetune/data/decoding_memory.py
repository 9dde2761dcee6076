"""How much memory decoding an image takes, by its header, and how much all may take at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# Of one process, in MiB; several threads that decode at once share it.
MAX_DECODING_MB = 1024

# Bytes a pixel, as Pillow holds them.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
_ARRAY_BYTES = 6  # RGB as an array, and once more upright
# What decoders hold beside the image that they hand over: frames in YUV, canvases, whole strips.
_CODEC_BYTES = {"WEBP": 8, "AVIF": 8, "HEIF": 8, "TIFF": 4}


def decoding_bytes(image: Image.Image, *, reduction: int = 1) -> int:
    """About how much memory decoding takes at its peak, by the header alone.

    Args:
        image: opened, not decoded.
        reduction: 1, 2, 4 or 8, by which a JPEG decoder shrinks it.
    """
    pixels = image.width * image.height
    needed = _STORED_BYTES.get(image.mode, 4) + _ARRAY_BYTES
    if image.mode != "RGB":
        needed += 4  # converted, as Pillow holds it
    codec = _CODEC_BYTES.get(image.format or "", 0)
    if image.info.get("progressive"):
        codec += 6  # all coefficients of all scans, 16 bits each, whatever the reduction
    return pixels * needed // reduction**2 + pixels * codec


class _DecodingMemory:
    """Memory that all threads of this process share while they decode.

    Whoever needs more than is free at the moment waits for the others.
    """

    def __init__(self) -> None:
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, needed: int, total: int) -> Iterator[None]:
        """Hold so many bytes while the block runs, of at most so many together."""
        with self._changed:
            self._changed.wait_for(lambda: self._used + needed <= max(total, needed))
            self._used += needed
        try:
            yield
        finally:
            with self._changed:
                self._used -= needed
                self._changed.notify_all()


memory_taken = _DecodingMemory().taken
