"""One image file into an upright ``uint8`` tensor, whatever the file's format and colour mode.

The rules, the same in training and in prediction:

- EXIF orientation is applied; animated files give their first frame.
- Greyscale of 16 bits is scaled by 1/257, 32-bit integers and floats by their range: never clipped.
- Transparency is composed over white (a browser's page), also for palettes.
- A truncated file is an error, whatever Pillow's global ``LOAD_TRUNCATED_IMAGES`` says.
- A file with more than ``max_pixels`` pixels is an error, found before anything is decoded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from finetune.errors import ImageError, UsageError

MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb: 0.5 GB as RGB

# A JPEG is decoded at 1/2, 1/4 or 1/8 only while twice the pixels that are asked for remain, so
# that the antialiased resize after it decides how the picture looks, not libjpeg.
DRAFT_MARGIN = 2

_pillow_settings = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageReader:
    """``decode_image`` with its settings: small, picklable, comparable."""

    in_chans: int = 3
    short_side: int | None = None
    max_pixels: int = MAX_PIXELS

    def __call__(self, path: str | os.PathLike[str]) -> Tensor:
        """The picture as ``uint8 (in_chans, H, W)``."""
        return decode_image(
            path,
            in_chans=self.in_chans,
            short_side=self.short_side,
            max_pixels=self.max_pixels,
        )


def decode_image(
    path: str | os.PathLike[str],
    *,
    in_chans: int = 3,
    short_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Decode one file into ``uint8 (in_chans, H, W)``, upright, RGB or (``in_chans=1``) grey.

    The values lie in memory as ``(H, W, C)``, which resizes fastest.

    Args:
        path: the file; its content decides the format, not its ending.
        in_chans: 3 or 1.
        short_side: largest short side wanted, in pixels; a larger picture is shrunk to exactly
            it, with antialiasing, keeping its aspect ratio. None keeps the picture's size.
        max_pixels: most pixels that a file may have.

    Raises:
        ImageError: the file cannot be read, is truncated, is no picture, or is too large.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"Expected a picture at {path}: {error.strerror}.") from error
    return decode_bytes(
        content, name=str(path), in_chans=in_chans, short_side=short_side, max_pixels=max_pixels
    )


def decode_bytes(
    content: bytes,
    *,
    name: str,
    in_chans: int = 3,
    short_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """:func:`decode_image` for a file already in memory; ``name`` is for the error message."""
    if in_chans not in (1, 3):
        raise UsageError(f"Expected in_chans to be 1 (grey) or 3 (colour), found {in_chans}.")
    with open_image(content, name=name, max_pixels=max_pixels) as image:
        try:
            pixels = _decode(image, "L" if in_chans == 1 else "RGB", short_side)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise whatever broken bytes lead them to
            raise ImageError(
                f"Expected a complete {image.format} picture, found a damaged one at {name} "
                f"({error}); replace or remove it."
            ) from error
    return pixels if short_side is None else shrink(pixels, short_side)


def shrink(pixels: Tensor, short_side: int) -> Tensor:
    """Resize ``uint8 (C, H, W)`` to a short side, with antialiasing; smaller pictures stay."""
    height, width = pixels.shape[-2:]
    if min(height, width) <= short_side:
        return pixels
    size = shrunk_size((height, width), short_side)
    # What torchvision's resize calls; importing that would take the longest part of a `check`.
    # The batch's dimension goes before the rows: only so torch sees the (H, W, C) layout, keeps it
    # and is twice as fast.
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(batch, size, mode="bicubic", antialias=True)[0]


@contextmanager
def open_image(content: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Read a picture's header: format, mode and size are known, nothing is decoded.

    Raises:
        ImageError: empty, not a picture, or more pixels than ``max_pixels``.
    """
    if not content:
        raise ImageError(f"Expected a picture, found an empty file at {name}; remove it.")
    _register_optional_formats()
    try:
        with _pillow_limits_off():
            image = Image.open(BytesIO(content))
    except Exception as error:
        raise ImageError(
            f"Expected a picture, found {_guess(content)} at {name}; remove or replace it."
        ) from error
    with image:
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"Expected at most {max_pixels:,} pixels, found {image.width} x {image.height} "
                f"at {name}; shrink it, or raise max_pixels."
            )
        yield image


def shrunk_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Both sides after shrinking to a short side, the long one rounded."""
    scale = short_side / min(size)
    return max(short_side, round(size[0] * scale)), max(short_side, round(size[1] * scale))


def _decode(image: Image.Image, mode: str, short_side: int | None) -> Tensor:
    """``uint8 (C, H, W)``, possibly reduced, but never below ``short_side``."""
    if image.format in ("JPEG", "MPO"):
        reduction = _jpeg_reduction(min(image.size), short_side)
        if reduction > 1:
            # draft() takes the largest reduction that keeps both sides at least this long.
            image.draft(None, (image.width // reduction, image.height // reduction))
    with _strict_about_truncation():
        image.load()
    upright = ImageOps.exif_transpose(image) if _has_orientation(image) else image
    return _to_tensor(_as_mode(upright, mode))


def _jpeg_reduction(shortest: int, short_side: int | None) -> int:
    """1, 2, 4 or 8: how far libjpeg may reduce while it decodes."""
    reduction = 1
    if short_side is not None:
        while reduction < 8 and shortest >= short_side * DRAFT_MARGIN * reduction * 2:
            reduction *= 2
    return reduction


def _has_orientation(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # a broken EXIF block says nothing about the picture itself
        return False


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any of Pillow's modes as ``RGB`` or ``L``."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_scaled_to_bytes(np.asarray(image)))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _scaled_to_bytes(values: np.ndarray) -> np.ndarray:
    """16-bit, 32-bit or float greyscale ``(H, W)`` as ``uint8``, scaled instead of clipped.

    16-bit values use their full range. Floats in [0, 1] and 32-bit integers in 16-bit range mean
    what they say; anything else has no agreed range, so the picture's own is used.
    """
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    full = 1.0 if values.dtype.kind == "f" else 65535.0
    if low < 0 or high > full:
        numbers, full = numbers - low, (high - low) or 1.0
    return np.rint(numbers * (255.0 / full)).astype(np.uint8)


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    # Laid out in memory as (H, W, C): torch resizes such uint8 tensors twice as fast.
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@contextmanager
def _pillow_limits_off() -> Iterator[None]:
    """Let a header be read without Pillow's own pixel limit: ours is checked right after."""
    with _pillow_settings:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _strict_about_truncation() -> Iterator[None]:
    """Refuse truncated files even where some library has set Pillow's global switch."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _pillow_settings:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


@cache
def _register_optional_formats() -> None:
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()


def _guess(content: bytes) -> str:
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        return "a web page (HTML)"
    if start.startswith((b"{", b"[")):
        return "JSON"
    if start.startswith((b"<?xml", b"<svg")):
        return "XML or SVG"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    return "no known picture format"
