"""Open every file once and note what it is: readable or not, size, mode, hashes, looks.

What was noted is remembered in the cache folder by path, size and time of change, so that only
new and changed files are opened again. The folder of pictures itself is only read.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.data.images import MAX_PIXELS, decode_bytes, hash_bytes, open_image
from finetune.data.locations import cache_folder, short_hash
from finetune.data.workload import usable_cores
from finetune.errors import ImageError

LOOK_SIDE = 128  # short side, in pixels, at which a picture's looks are measured
VERSION = 2  # of what is remembered; another number forgets everything


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one file turned out to be.

    Attributes:
        path: the file.
        size, mtime_ns: of the file, in bytes and nanoseconds; they tell whether it has changed.
        problem: why it cannot be read, or None.
        content_hash: of its bytes; empty if it cannot be opened.
        format, mode: as Pillow names them, such as JPEG and RGB.
        width, height: in pixels, as stored.
        orientation: EXIF's number, 1 for upright.
        colours: how many colours (of 32 768) it takes to cover 95 % of its area.
        flatness: share of pixels equal to their right and lower neighbours, in [0, 1].
        brightest: the largest value of any channel, 0 to 255.
        perceptual_hash: 64 bits as 16 hexadecimal digits, nearly equal for pictures that look
            alike; empty unless asked for.
    """

    path: Path
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None
    content_hash: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    colours: int = 0
    flatness: float = 0.0
    brightest: int = 0
    perceptual_hash: str = ""


def inspect_file(
    path: Path, *, max_pixels: int = MAX_PIXELS, perceptual: bool = False
) -> Inspection:
    """Read and decode one file; never raises for what is wrong with the file."""
    try:
        status = path.stat()
        content = path.read_bytes()
    except OSError as error:
        return Inspection(path, problem=f"cannot be opened: {error.strerror}")
    known = Inspection(path, status.st_size, status.st_mtime_ns, content_hash=hash_bytes(content))
    try:
        with open_image(content, name=str(path), max_pixels=max_pixels) as image:
            known = replace(
                known,
                format=image.format or "",
                mode=image.mode,
                width=image.width,
                height=image.height,
                orientation=_orientation(image),
            )
        pixels = decode_bytes(content, name=str(path), short_side=LOOK_SIDE, max_pixels=max_pixels)
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
    perceptual: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    remember: bool = True,
    progress: bool = False,
) -> list[Inspection]:
    """Inspect files in parallel, in their order; files inspected before are not opened again.

    Args:
        paths: the files.
        root: the folder that they belong to; it names the memory.
        max_pixels: more are a problem.
        perceptual: compute perceptual hashes as well.
        cache_dir: where to remember, instead of the platform's cache folder.
        remember: False opens every file and writes nothing.
        progress: draw a bar on standard error, if that is a terminal.
    """
    memory_path = _memory_path(root, max_pixels, cache_dir)
    memory = _recall(memory_path) if remember else {}
    results: dict[Path, Inspection] = {}
    for path in paths:
        known = memory.get(os.path.abspath(path))
        if known and _unchanged(path, known) and (known.perceptual_hash or not perceptual):
            results[path] = replace(known, path=path)
    new = [path for path in paths if path not in results]
    if new:
        try:
            # Pillow and torch let go of the interpreter while they work: threads start at once.
            with ThreadPoolExecutor(usable_cores()) as pool:
                inspected = pool.map(
                    lambda path: inspect_file(path, max_pixels=max_pixels, perceptual=perceptual),
                    new,
                )
                for inspection in _tracked(inspected, len(new), progress):
                    results[inspection.path] = inspection
        finally:
            if remember:  # also what was found before Ctrl-C: the next check goes on there
                found = [path for path in new if path in results]
                memory.update((os.path.abspath(path), results[path]) for path in found)
                # What has been deleted or moved since is forgotten, or the memory would only grow.
                there = {key: seen for key, seen in memory.items() if os.path.exists(key)}
                _remember(memory_path, there)
    return [results[path] for path in paths]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block
        return 1


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


def _perceptual_hash(pixels: Tensor) -> str:
    import imagehash

    return str(imagehash.phash(Image.fromarray(pixels.permute(1, 2, 0).numpy())))


def _reason(message: str, path: Path) -> str:
    """An error's expected and found, without the path and the remedy."""
    return message.replace(f" at {path}", "").rpartition("; ")[0]


def _tracked(inspections: Iterable[Inspection], total: int, progress: bool) -> Iterator[Inspection]:
    if not progress:
        yield from inspections
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.__stderr__)  # bars need what sys.stderr would escape
    yield from track(
        inspections,
        "Opening pictures",
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _memory_path(root: Path, max_pixels: int, cache_dir: str | os.PathLike[str] | None) -> Path:
    key = short_hash(f"{VERSION}|{os.path.realpath(root)}|{max_pixels}")
    return cache_folder(cache_dir) / "inspections" / f"{key}.jsonl"


def _unchanged(path: Path, known: Inspection) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns)


def _recall(path: Path) -> dict[str, Inspection]:
    memory: dict[str, Inspection] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        for line in lines:
            values: dict[str, Any] = json.loads(line)
            memory[values["path"]] = Inspection(**{**values, "path": Path(values["path"])})
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # nothing remembered yet, or damaged: everything is simply opened again
    return memory


def _remember(path: Path, memory: dict[str, Inspection]) -> None:
    with suppress(OSError):  # a full disk or a read-only home costs time, not the command
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                for key, inspection in memory.items():
                    file.write(json.dumps({**asdict(inspection), "path": key}) + "\n")
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
