"""One image file into an upright ``uint8`` tensor, whatever the file's format and colour mode.

The rules, the same in training and in prediction:

- Formats are a closed list: nothing else in a file is given to a decoder, whatever its ending, for
  Pillow starts other programs for some (Ghostscript for EPS).
- EXIF orientation is applied, the rest of EXIF is not parsed; animated files give their first
  frame.
- Greyscale of 16 bits is scaled by 1/257, 32-bit integers and floats by their range: never clipped.
- Transparency is composed over white (a browser's page), also for palettes.
- A truncated file is an error, whatever Pillow's global ``LOAD_TRUNCATED_IMAGES`` says.
- A file with more than ``max_pixels`` pixels, or that takes more than ``max_decoding_mb`` MiB to
  decode, is an error, found in its header before anything is decoded.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.nn.functional import interpolate

from finetune.data.decoding_memory import MAX_DECODING_MB, decoding_bytes, memory_taken
from finetune.data.image_bytes import image_bytes
from finetune.data.image_formats import guessed_kind, readable_formats
from finetune.errors import ImageError, UsageError
from finetune.spec.preprocessing import LongSide, Preprocessing

MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb: 0.5 GB as RGB

# A JPEG is decoded at 1/2, 1/4 or 1/8 only while twice the pixels that are asked for remain, so
# that the antialiased resize after it decides how the image looks, not libjpeg.
DRAFT_MARGIN = 2

# EXIF 2.32, 4.6.4: what turns ``(H, W, ...)`` upright, by the number. Arrays are turned, not
# Pillow's images, which take four bytes a pixel.
_TO_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
_ROWS_A_STRIP = 256  # of an image that is composed or scaled piece by piece, to save memory

_pillow_settings = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Decodes a file into ``uint8 (in_chans, H, W)``, upright, RGB or (``in_chans=1``) grey.

    The content decides the format, not the file's ending. Values lie in memory as ``(H, W, C)``,
    which resizes fastest.

    Attributes:
        in_chans: 3 or 1.
        short_side: largest short side wanted, in pixels; a larger image is shrunk to exactly
            it, with antialiasing, keeping its aspect ratio. None keeps the image's size.
        max_pixels: most pixels that a file may have.
        long_side: how the other side is rounded where an image is shrunk.
        max_decoding_mb: most memory that decoding may take, in MiB.
    """

    in_chans: int = 3
    short_side: int | None = None
    max_pixels: int = MAX_PIXELS
    long_side: LongSide = "truncated"
    # Refuses files, and changes nothing of what others give: no part of the cache's name.
    max_decoding_mb: int = field(default=MAX_DECODING_MB, repr=False)

    @classmethod
    def of(
        cls,
        preprocessings: Sequence[Preprocessing],
        *,
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
    ) -> ImageReader:
        """Decodes once for all of them: as large and as colourful as the most demanding wants."""
        most = max(preprocessings, key=lambda each: each.resize_size)
        in_chans = max(each.in_chans for each in preprocessings)
        return cls(in_chans, most.resize_size, max_pixels, most.long_side, max_decoding_mb)

    def __call__(self, path: str | os.PathLike[str]) -> Tensor:
        """The image of a file.

        Raises:
            ImageError: it cannot be read, is truncated, is no image, or is too large.
        """
        return self.decode(file_content(path), name=str(path))

    def decode(self, content: bytes, *, name: str) -> Tensor:
        """The same of a file that is in memory already; ``name`` is for the error message."""
        if self.in_chans not in (1, 3):
            raise UsageError(
                f"Expected in_chans to be 1 (grey) or 3 (colour), found {self.in_chans}."
            )
        with open_image(content, name=name, max_pixels=self.max_pixels) as image:
            reduction = _reduction(image, self.short_side)
            needed, room = decoding_bytes(image, reduction=reduction), self.max_decoding_mb * 2**20
            if needed > room:
                raise ImageError(
                    f"Expected an image that takes at most {self.max_decoding_mb:,} MiB to decode, "
                    f"found one of {image.width} x {image.height} pixels ({image.format}, "
                    f"{image.mode}) that takes {needed / 2**20:,.0f} MiB at {name}; shrink it, or "
                    "raise max_decoding_mb."
                )
            try:
                with memory_taken(needed, room):
                    pixels = _decode(image, "L" if self.in_chans == 1 else "RGB", reduction)
            except MemoryError:
                raise
            except Exception as error:  # Pillow's plugins raise whatever broken bytes lead them to
                raise ImageError(
                    f"Expected a complete {image.format} image, found a damaged one at {name} "
                    f"({error}); replace or remove it."
                ) from error
        if self.short_side is None:
            return pixels
        return shrink(pixels, self.short_side, self.long_side)


def file_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image of this machine, also of one in a shard or a table.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return image_bytes(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: object, error: OSError) -> ImageError:
    """What to say of a file that the system does not give."""
    return ImageError(f"Expected an image at {path}: {error.strerror or 'it is gone'}.")


def shrink(pixels: Tensor, short_side: int, long_side: LongSide = "truncated") -> Tensor:
    """Resize ``uint8 (C, H, W)`` to a short side, with antialiasing; smaller images stay."""
    height, width = pixels.shape[-2:]
    if min(height, width) <= short_side:
        return pixels
    size = shrunk_size((height, width), short_side, long_side)
    # What torchvision's resize calls; importing that would take the longest part of a `check`.
    # The batch's dimension goes before the rows: only so torch sees the (H, W, C) layout, keeps it
    # and is twice as fast.
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(batch, size, mode="bicubic", antialias=True)[0]


@contextmanager
def open_image(content: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Read an image's header: format, mode and size are known, nothing is decoded.

    Raises:
        ImageError: empty, not an image, or more pixels than ``max_pixels``.
    """
    if not content:
        raise ImageError(f"Expected an image, found an empty file at {name}; remove it.")
    try:
        with _header_only():
            image = Image.open(BytesIO(content), formats=readable_formats())
    except Exception as error:
        raise ImageError(
            f"Expected an image, found {guessed_kind(content)} at {name}; remove or replace it."
        ) from error
    with image:
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"Expected at most {max_pixels:,} pixels, found {image.width} x {image.height} "
                f"at {name}; shrink it, or raise max_pixels."
            )
        yield image


def orientation_of(image: Image.Image) -> int:
    """EXIF's number, 1 to 8; 1, upright, where there is none or it cannot be read."""
    try:
        with _header_only():
            # The base class's: PNG's own decodes the whole image to look behind it first.
            number = int(Image.Image.getexif(image).get(0x0112, 1))
    except Exception:  # a broken EXIF block says nothing about the image itself
        return 1
    return number if number in _TO_UPRIGHT else 1


def shrunk_size(
    size: tuple[int, int], short_side: int, long_side: LongSide = "truncated"
) -> tuple[int, int]:
    """Both sides after shrinking to a short side; see :class:`Preprocessing` for the long one."""
    shortest = min(size)
    to_whole = int if long_side == "truncated" else round
    height, width = (max(short_side, to_whole(short_side * side / shortest)) for side in size)
    return height, width


def _decode(image: Image.Image, mode: str, reduction: int) -> Tensor:
    """``uint8 (C, H, W)``, shrunk by the reduction where the format can."""
    if reduction > 1:
        # draft() takes the largest reduction that keeps both sides at least this long.
        image.draft(None, (image.width // reduction, image.height // reduction))
    if image.format == "TIFF":
        orientation_of(image)  # or load() would ask for it, and warn of every odd tag
    with _strict_about_truncation():
        image.load()
    return _to_tensor(_as_mode(image, mode), orientation_of(image))


def _reduction(image: Image.Image, short_side: int | None) -> int:
    """1, 2, 4 or 8: how far libjpeg may reduce while it decodes, but never below what is wanted."""
    reduction = 1
    if short_side is not None and image.format in ("JPEG", "MPO"):
        while reduction < 8 and min(image.size) >= short_side * DRAFT_MARGIN * reduction * 2:
            reduction *= 2
    return reduction


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any of Pillow's modes as ``RGB`` or ``L``."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_scaled_to_bytes(np.asarray(image)))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = _over_white(image)
    return image if image.mode == mode else image.convert(mode)


def _over_white(image: Image.Image) -> Image.Image:
    """What lies behind transparent parts is white; strip by strip, for each takes four copies."""
    composed = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS_A_STRIP):
        bottom = min(top + _ROWS_A_STRIP, image.height)
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        composed.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return composed


def _scaled_to_bytes(values: np.ndarray) -> np.ndarray:
    """16-bit, 32-bit or float greyscale ``(H, W)`` as ``uint8``, scaled instead of clipped.

    16-bit values use their full range. Floats in [0, 1] and 32-bit integers in 16-bit range mean
    what they say; anything else has no agreed range, so the image's own is used.
    """
    strips = range(0, len(values), _ROWS_A_STRIP)
    low = min(float(_as_numbers(values[top : top + _ROWS_A_STRIP]).min()) for top in strips)
    high = max(float(_as_numbers(values[top : top + _ROWS_A_STRIP]).max()) for top in strips)
    full = 1.0 if values.dtype.kind == "f" else 65535.0
    start = 0.0
    if low < 0 or high > full:
        start, full = low, (high - low) or 1.0
    scaled = np.empty(values.shape, np.uint8)
    for top in strips:
        numbers = _as_numbers(values[top : top + _ROWS_A_STRIP])
        scaled[top : top + _ROWS_A_STRIP] = np.rint((numbers - start) * (255.0 / full))
    return scaled


def _as_numbers(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaNs that are to signal when they are touched
        return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


def _to_tensor(image: Image.Image, orientation: int) -> Tensor:
    """Upright ``uint8 (C, H, W)``, laid out as ``(H, W, C)``: torch resizes that twice as fast."""
    stored = np.asarray(image)
    turn = _TO_UPRIGHT.get(orientation)
    pixels = torch.from_numpy(stored.copy() if turn is None else turn(stored).copy(order="C"))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@contextmanager
def _header_only() -> Iterator[None]:
    """Let a header be read without Pillow's own pixel limit, since ours is checked right after,
    and without its warnings of odd metadata, which say nothing about the image itself.
    """
    with _pillow_settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
