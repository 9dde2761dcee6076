"""Where an export goes: a file of the format's ending, or a folder; whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from finetune.errors import UsageError
from finetune.files import atomic_folder, atomic_write

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
def written_beside(path: Path, format: Format) -> Iterator[Path]:
    """A file or folder beside the target, which takes its place if the block ends well.

    The files of a folder replace those of the same names; others in it stay.
    """
    is_folder = format not in SUFFIXES
    with (atomic_folder if is_folder else atomic_write)(path) as beside:
        try:
            yield beside
        except SafetensorError as error:  # its writer's word for a full disk
            raise OSError(str(error)) from error
        if is_folder:
            for file in beside.iterdir():
                # safetensors lets only the owner read; the folder knows what is usual here.
                file.chmod(beside.stat().st_mode & 0o666)
