"""Which shards and tables a root names, and the folder that they lie in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from finetune.data.image_blocks import numbered
from finetune.data.image_tables import TABLES, paths_of
from finetune.data.tar_shards import SHARDS, index_of
from finetune.data.walk import Walk, why_hidden
from finetune.errors import ImageError, ImageFolderError
from finetune.spec.images import within

AnyPath = str | os.PathLike[str]


def shards_at(root: AnyPath) -> list[Path]:
    """The shards and tables that a root names; none where it is a folder of images.

    Args:
        root: a shard, a pattern of shards such as ``x{000..123}.tar`` or ``*.parquet``, a folder
            with nothing but shards, or any other.

    Raises:
        ImageFolderError: something else beside shards, nothing, or what is read as a whole alone.
    """
    text = os.fspath(root)
    if os.path.isdir(text):
        walk = Walk()
        folders, files = walk.entries(text)
        found = [path for path in files if is_shard(path) or walk.is_image(path)]
        if folders or not any(map(is_shard, found)):
            return []
    else:
        names = list(numbered(text))
        if not has_magic(text) and names == [text] and not is_shard(text):
            return []
        found = [path for name in names for path in sorted(glob(name, recursive=True)) or [name]]
    if missing := [path for path in found if not os.path.isfile(path)]:
        raise ImageFolderError(
            f"Expected shards at {text}, found nothing at {missing[0]}; check --data.root."
        )
    check_shards(text, found)
    return [Path(path) for path in found]


def folder_of(root: AnyPath) -> Path:
    """Where paths of images start from: the root, or the folder that its shards lie in, or did."""
    text = os.fspath(root)
    if os.path.isdir(text) or not (is_shard(text) or has_magic(text)):
        return Path(root)
    folder = os.path.dirname(text)
    while (has_magic(folder) or "{" in folder) and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return Path(folder)


def images_within(shard: Path) -> list[Path]:
    """The images of a shard or table, labelled or not, ``shard::name``.

    Raises:
        ImageError: a damaged shard, or one that is packed as a whole. DataError: no table.
    """
    if shard.suffix.lower() in TABLES:
        return paths_of(shard)
    index, walk = index_of(shard), Walk()
    if index.damage:
        raise ImageError(
            f"Expected a whole shard, found that {shard} {index.damage}; write it again."
        )
    names = [n for n in index.places if walk.is_image(n) and not why_hidden(n.rpartition("/")[2])]
    return [within(shard, name) for name in names]


def is_shard(path: str) -> bool:
    """Whether a file's ending is that of a shard or a table."""
    return path.lower().endswith((*SHARDS, *TABLES))


def check_shards(root: str, found: Sequence[str]) -> None:
    """Refuse other files beside shards, and shards that are packed as a whole.

    Raises:
        ImageFolderError: these.
    """
    if others := [path for path in found if not is_shard(path)]:
        raise ImageFolderError(
            f"Expected either shards or images at {root}, found {others[0]} beside shards; name "
            "the shards alone, or move them away."
        )
    if packed := [path for path in found if path.lower().endswith(SHARDS[1:])]:
        raise ImageFolderError(
            f"Expected shards whose images can be read one by one, found {packed[0]}, packed as a "
            "whole; run gunzip on it."
        )
