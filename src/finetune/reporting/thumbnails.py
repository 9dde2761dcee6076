"""Small images of bounded size, for galleries."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.decoding import ImageReader
from finetune.data.image_bytes import is_there
from finetune.data.shard_files import folder_of
from finetune.errors import ImageError

SIDE = 128  # pixels of the square


def read_thumbnail(path: str | Path, *, side: int = SIDE) -> NDArray[np.uint8] | None:
    """The upright centre square of an image, ``(side, side, 3)``, or None if it cannot be read."""
    pixels = _pixels(path, side)
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = Image.fromarray(pixels[top : top + short, left : left + short])
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def read_whole(path: str | Path, *, side: int) -> NDArray[np.uint8] | None:
    """The whole upright image, its longer side at most ``side``, or None if it cannot be read."""
    pixels = _pixels(path, side)
    if pixels is None:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _pixels(path: str | Path, side: int) -> NDArray[np.uint8] | None:
    try:
        return ImageReader(short_side=side)(path).permute(1, 2, 0).numpy()
    except (ImageError, OSError, ValueError):
        return None


def data_uri(pixels: NDArray[np.uint8], *, quality: int = 60) -> str:
    """Pixels ``(H, W, 3)`` as a WebP image inside an address."""
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(raw.getvalue()).decode("ascii")


def thumbnail_uris(
    paths: Iterable[str], *, root: Path | None = None, budget: int
) -> dict[str, str]:
    """Images by path, first come first served, until ``budget`` bytes are full.

    A path that leads nowhere is looked up below ``root``. What cannot be read is left out.
    """
    uris: dict[str, str] = {}
    spent = 0
    for path in dict.fromkeys(paths):
        if spent >= budget:
            break
        pixels = read_located(path, root)
        if pixels is not None:
            uris[path] = data_uri(pixels)
            spent += len(uris[path])
    return uris


def read_located(path: str, root: Path | None) -> NDArray[np.uint8] | None:
    """The square of an image as it is named, or as it is named below ``root``."""
    return read_thumbnail(locate(path, root))


def locate(path: str, root: Path | None) -> Path:
    """Where an image lies: as named, or else below ``root``, which may be shards."""
    as_named = Path(path)
    return as_named if root is None or is_there(as_named) else folder_of(root) / path
