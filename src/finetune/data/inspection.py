"""Open every file once and note what it is: readable or not, size, mode, hashes, looks.

What was noted is remembered in the cache folder by path and
:func:`~finetune.cache_dir.file_stamp`, so that only new and changed files are opened again. The
folder of images itself is only read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.cache_dir import CachedFiles, file_stamp, short_hash, write_all
from finetune.data.decoding import MAX_PIXELS, ImageReader, open_image, orientation_of
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.image_bytes import image_bytes, is_there
from finetune.data.workers import usable_cores
from finetune.errors import ImageError
from finetune.long_steps import told
from finetune.spec.images import content_id, place_of

LOOK_SIDE = 128  # short side, in pixels, at which an image's looks are measured
VERSION = 4  # of what is remembered; another number forgets everything
ENDING = ".inspections"
LIMIT_BYTES = 256 * 2**20  # of all data sets' memories together


Stamp = tuple[int, ...]


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


Memory = dict[str, tuple[Stamp, Inspection]]


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
    memory = _recall(files, group) if remember else {}
    stamps = {path: _stamp(path) for path in paths}  # before anything is read
    results: dict[Path, Inspection] = {}
    for path in paths:
        stamp, known = memory.get(os.path.abspath(path), (None, None))
        same = known is not None and stamp == stamps[path]
        if known and same and (known.perceptual_hash or not perceptual):
            results[path] = replace(known, path=path)
    new = [path for path in paths if path not in results]
    if new:
        try:
            # Pillow and torch let go of the interpreter while they work: threads start at once.
            with ThreadPoolExecutor(usable_cores()) as pool:
                inspected = pool.map(
                    lambda path: inspect_file(path, **limits, perceptual=perceptual),
                    new,
                )
                try:
                    for inspection in told(inspected, "Opening images", len(new)):
                        results[inspection.path] = inspection
                finally:
                    pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the others
        finally:
            if remember:  # also what was found before Ctrl-C: the next check goes on there
                found = ((path, stamps[path]) for path in new if path in results)
                seen = {os.path.abspath(path): (at, results[path]) for path, at in found if at}
                _remember(files, group, seen)
    return [replace(results[path], stamp=stamps[path] or ()) for path in paths]


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


def _stamp(path: Path) -> Stamp | None:
    """What tells whether a file has changed; None of one that cannot be read now."""
    try:
        return file_stamp(path) if os.access(place_of(path)[0], os.R_OK) else None
    except OSError:
        return None


def _recall(files: CachedFiles, group: str) -> Memory:
    """By absolute path, what the files of a group say; of those that are whole."""
    memory: Memory = {}
    for path in files.listed(group, ENDING):
        with suppress(Exception), files.open(path) as file:  # gone, or damaged in whatever way
            checksum, content = file.read(4), file.read()
            if checksum == _checksum(content):
                for key, (stamp, values) in json.loads(content).items():
                    memory[key] = tuple(stamp), Inspection(**{**values, "path": Path(key)})
    return memory


def _remember(files: CachedFiles, group: str, seen: Memory) -> None:
    """Write one file of all that is known of a group, also by other processes meanwhile."""
    older = files.listed(group, ENDING)
    # What has been deleted or moved since is forgotten, or the memory would only grow.
    known = {k: v for k, v in (_recall(files, group) | seen).items() if is_there(k)}
    values = {key: (stamp, {**asdict(seen), "path": key}) for key, (stamp, seen) in known.items()}
    content = json.dumps(values).encode()
    path = files.new_path(group, ENDING)
    try:
        with files.create(path) as file:
            write_all(file, _checksum(content) + content)
    except OSError:  # a full disk or a read-only home costs time, not the command
        files.remove(path)
        return
    for read in older:
        files.remove(read)
    files.evict(LIMIT_BYTES, keep=group)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")
