"""Open every file once and note what it is: readable or not, size, mode, hashes, looks.

What was noted is remembered in the cache folder by path and
:func:`~finetune.cache_dir.file_stamp` (:mod:`finetune.data.inspection_memory`), so that only new
and changed files are opened again. The folder of images itself is only read.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.cache_dir import CachedFiles, file_stamp, short_hash
from finetune.data.decoding import MAX_PIXELS, ImageReader, open_image, orientation_of
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.image_bytes import image_bytes
from finetune.data.inspection_memory import VERSION, Remembered, Stamp, keep, recall
from finetune.data.workers import usable_cores
from finetune.errors import ImageError
from finetune.long_steps import told
from finetune.spec.images import content_id, place_of

LOOK_SIDE = 128  # short side, in pixels, at which an image's looks are measured
AHEAD = 64  # files that threads may open before the first of them is asked for


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one file turned out to be.

    Attributes:
        path: the file.
        size: of the file in bytes.
        problem: why it cannot be read, or None.
        content_hash: of its bytes; empty if it cannot be opened.
        format, mode: as Pillow names them, such as JPEG and RGB.
        width, height: in pixels, as stored.
        orientation: EXIF's number, 1 for upright.
        pages: whether a TIFF has more pages than the first, which alone is read.
        colours: how many colours (of 32 768) it takes to cover 95 % of its area.
        flatness: share of pixels equal to their right and lower neighbours, in [0, 1].
        brightest: the largest value of any channel, 0 to 255.
        perceptual_hash: 64 bits as 16 hexadecimal digits, nearly equal for images that look
            alike; empty unless asked for.
        stamp: what tells whether the file has changed since; see
            :func:`~finetune.cache_dir.file_stamp`.
    """

    path: Path
    size: int = 0
    problem: str | None = None
    content_hash: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    pages: bool = False
    colours: int = 0
    flatness: float = 0.0
    brightest: int = 0
    perceptual_hash: str = ""
    stamp: Stamp = field(default=(), compare=False)


_VALUES = [each.name for each in fields(Inspection) if each.name not in ("path", "stamp")]


def inspect_file(
    path: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    max_decoding_mb: int = MAX_DECODING_MB,
    perceptual: bool = False,
) -> Inspection:
    """Read and decode one file; never raises for what is wrong with the file."""
    try:
        content = image_bytes(path)
    except OSError as error:
        return Inspection(path, problem=f"cannot be opened: {error.strerror}")
    known = Inspection(path, len(content), content_hash=content_id(content))
    try:
        with open_image(content, name=str(path), max_pixels=max_pixels) as image:
            known = replace(
                known,
                format=image.format or "",
                mode=image.mode,
                width=image.width,
                height=image.height,
                orientation=orientation_of(image),
            )
            known = replace(known, pages=_has_pages(image))
        reader = ImageReader(3, LOOK_SIDE, max_pixels, max_decoding_mb=max_decoding_mb)
        pixels = reader.decode(content, name=str(path))
    except ImageError as error:
        return replace(known, problem=_reason(str(error), path))
    colours, flatness = _looks(pixels)
    return replace(
        known,
        colours=colours,
        flatness=flatness,
        brightest=int(pixels.max()),
        perceptual_hash=_perceptual_hash(pixels) if perceptual else "",
    )


def inspect_files(
    paths: Sequence[Path],
    *,
    root: Path,
    max_pixels: int = MAX_PIXELS,
    max_decoding_mb: int = MAX_DECODING_MB,
    perceptual: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    remember: bool = True,
) -> list[Inspection]:
    """Inspect files in parallel, in their order; files inspected before are not opened again.

    Args:
        paths: the files.
        root: the folder that they belong to; it names the memory.
        max_pixels, max_decoding_mb: what takes more is a problem.
        perceptual: compute perceptual hashes as well.
        cache_dir: where to remember, instead of the platform's cache folder.
        remember: False opens every file and writes nothing.
    """
    files = CachedFiles(cache_dir, "inspections", VERSION)
    limits = {"max_pixels": max_pixels, "max_decoding_mb": max_decoding_mb}
    group = short_hash(f"{os.path.realpath(root)}|{limits}")
    names = [os.path.abspath(path) for path in paths]
    stamps = dict(zip(names, _stamps(paths), strict=True))  # before anything is read
    new = dict(zip(names, paths, strict=True))
    results: dict[str, Inspection] = {}
    for each in recall(files, group) if remember else ():
        if each.path in new and each.stamp == stamps[each.path]:
            known = _recalled(each, new[each.path], stamps[each.path])
            if known is not None and (known.perceptual_hash or not perceptual):
                results[each.path] = known
                del new[each.path]
    if new:
        opening = _inspected(
            new.values(), lambda path: inspect_file(path, **limits, perceptual=perceptual)
        )
        try:
            with closing(opening) as inspected:
                opened = told(inspected, "Opening images", len(new))
                for name, found in zip(new, opened, strict=True):
                    results[name] = replace(found, stamp=stamps[name])
        finally:
            if remember:  # also what was found before Ctrl-C: the next check goes on there
                seen = ((name, results[name]) for name in new if name in results)
                keep(files, group, (_remembered(name, f) for name, f in seen if f.stamp))
    return [
        found if (found := results[name]).path is path else replace(found, path=path)
        for name, path in zip(names, paths, strict=True)
    ]


def _looks(pixels: Tensor) -> tuple[int, float]:
    """``(colours, flatness)`` of ``uint8 (3, H, W)``; see :class:`Inspection`."""
    values = pixels.numpy()
    red, green, blue = (values >> 3).astype(np.int32)
    counts = np.bincount((red << 10 | green << 5 | blue).ravel())
    largest_first = np.sort(counts)[::-1].cumsum()
    colours = int(np.searchsorted(largest_first, 0.95 * largest_first[-1])) + 1
    if min(values.shape[1:]) < 2:
        return colours, 1.0
    inner = values[:, :-1, :-1]
    equal = (inner == values[:, :-1, 1:]) & (inner == values[:, 1:, :-1])
    return colours, round(float(equal.all(axis=0).mean()), 4)


def _has_pages(image: Image.Image) -> bool:
    """Of TIFF alone: what is second in a GIF moves, and in a telephone's JPEG it is a preview."""
    if image.format != "TIFF":
        return False
    try:
        image.seek(1)
    except Exception:  # EOFError: there is none; or whatever broken bytes lead to
        return False
    return True


def _perceptual_hash(pixels: Tensor) -> str:
    import imagehash

    return str(imagehash.phash(Image.fromarray(pixels.permute(1, 2, 0).numpy())))


def _reason(message: str, path: Path) -> str:
    """An error's expected and found, without the path and the remedy."""
    return message.replace(f" at {path}", "").rpartition("; ")[0]


def _stamps(paths: Iterable[Path]) -> Iterator[Stamp]:
    """What tells whether a file has changed; nothing of one that cannot be read now.

    That of a shard or table is found once for all of its images.
    """
    shared: dict[Path, Stamp] = {}
    for path in paths:
        holder, name = place_of(path)
        if not name:
            yield _stamp(path)
            continue
        if holder not in shared:
            shared[holder] = _stamp(holder)
        yield shared[holder]


def _stamp(path: Path) -> Stamp:
    try:
        return file_stamp(path) if os.access(path, os.R_OK) else ()
    except OSError:
        return ()


def _inspected(
    paths: Iterable[Path], inspect: Callable[[Path], Inspection]
) -> Generator[Inspection, None, None]:
    """Each in order, by threads: Pillow and torch let go of the interpreter while they work."""
    ahead: deque[Future[Inspection]] = deque()
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for path in paths:
            ahead.append(pool.submit(inspect, path))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the others


def _remembered(name: str, found: Inspection) -> Remembered:
    return Remembered(name, found.stamp, {each: getattr(found, each) for each in _VALUES})


def _recalled(each: Remembered, path: Path, stamp: Stamp) -> Inspection | None:
    """What was remembered, with the given stamp in place of its equal; None where it is odd."""
    if not stamp or each.values.keys() != set(_VALUES):
        return None
    few = {name: sys.intern(str(each.values[name])) for name in ("format", "mode")}
    return Inspection(path, **{**each.values, **few}, stamp=stamp)
