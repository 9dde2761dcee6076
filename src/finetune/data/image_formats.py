"""Which formats of images are read: a closed list, whatever a file is called."""

from __future__ import annotations

import ctypes
import logging
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image, _imaging

# What Pillow reads without starting any other program; HEIF where pillow-heif is installed.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # brands; ISO/IEC 23008-12
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF")


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of the closed list that the installed Pillow can read, their decoders registered."""
    for plugin in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP", "Avif"):
        import_module(f"PIL.{plugin}ImagePlugin")
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    _hush_decoders()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _hush_decoders() -> None:
    """Pillow raises what is wrong; it and libtiff print it on standard error as well."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with suppress(OSError, AttributeError):  # where Pillow was built without, or hides it
        pillow = ctypes.CDLL(_imaging.__file__)
        pillow.TIFFSetErrorHandler(None)
        pillow.TIFFSetWarningHandler(None)


def guessed_kind(content: bytes) -> str:
    """What bytes that are no image seem to be, in the words of an error message."""
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        return "a web page (HTML)"
    if start.startswith((b"{", b"[")):
        return "JSON"
    if start.startswith((b"<?xml", b"<svg")):
        return "XML or SVG"
    if start.startswith((b"%!ps", b"%pdf", b"\xc5\xd0\xd3\xc6")):
        return "PostScript or PDF, which is a program and is not run"
    if start[4:8] == b"ftyp" and (start[8:12] in _HEIF or start[8:12] == b"avif"):
        return _unread(start[8:12])
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    return "no known image format"


def _unread(brand: bytes) -> str:
    """An image of a phone, which is damaged where the package that reads it is there."""
    form, package = ("AVIF", "Pillow with AVIF") if brand == b"avif" else ("HEIF", "pillow-heif")
    if form in readable_formats():
        return f"a damaged {form} image"
    return f"a {form} image, for which the package {package} is needed"
