"""Where an export goes: the right ending, written beside and renamed, nothing foreign removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from finetune.errors import UsageError

Format = Literal["onnx", "torch", "safetensors", "timm"]
# The others are folders.
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def check_target(path: str | Path, format: Format) -> Path:
    """The path, absolute, if this format can go there.

    Raises:
        UsageError: another ending, a file for a folder or the reverse, or no folder to write into.
    """
    path = Path(path).absolute()
    suffix = SUFFIXES.get(format)
    if suffix is not None and path.suffix.lower() != suffix:
        raise UsageError(
            f"Expected a file that ends in {suffix} for the format {format}, found {path.name}; "
            "rename it."
        )
    if suffix is not None and path.is_dir():
        raise UsageError(f"Expected a file to write, found the folder {path}; name another.")
    if suffix is None and path.is_file():
        raise UsageError(
            f"Expected a folder to write for the format {format}, found the file {path}; "
            "name another."
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"Expected a folder to write {path.name} into, found no {path.parent}; create it."
        )
    return path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A name beside the target, which takes the target's place if the block ends well.

    The files of a folder replace those of the same names; others in it stay.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        if beside.is_dir():
            path.mkdir(exist_ok=True)
            for file in sorted(beside.iterdir()):
                # safetensors lets only the owner read; the folder knows what is usual here.
                file.chmod(beside.stat().st_mode & 0o666)
                file.replace(path / file.name)
        else:
            beside.replace(path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        beside.unlink(missing_ok=True)
