"""Configuration files, judged before the parser sees them and follows what they say."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.documents import read_yaml
from finetune.errors import UsageError

_CONFIG = re.compile(r"(--config$|--config=|-c=?)(.*)", re.DOTALL)


def checkpoint_option(arguments: Sequence[str]) -> str | None:
    """``ckpt_path`` from the options or a configuration file, before anything is parsed.

    Raises:
        UsageError: no file where one is named, one that :func:`read_settings` refuses, or a pipe.
    """
    check_texts([argument.partition("=")[2] or argument for argument in arguments], Path())
    found = None
    for option, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, _, attached = option.partition("=")
        if name == "--ckpt_path":
            found = attached or following
        elif config := _CONFIG.match(option):
            found = _checkpoint_in(config[2] or following) or found
    return found or None


def _checkpoint_in(config: str) -> str | None:
    if os.path.exists(config):
        return read_settings(config).get("ckpt_path")
    if config and "{" not in config:  # with braces, it is the settings themselves
        raise UsageError(f"Expected a YAML file at {config}, found nothing; check --config.")
    return None


def read_settings(path: str) -> dict[str, Any]:
    """A configuration file, checked before the parser sees it and follows what it says.

    Raises:
        UsageError: not within the bounds of :mod:`finetune.documents`, or it names further files.
    """
    settings = read_yaml(path)
    check_texts(settings, Path(path).parent)
    checkpoint = settings.get("ckpt_path")
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise UsageError(f"Expected ckpt_path in {path} to be a path, found {checkpoint!r:.60}.")
    for name in ("trainer", "model", "data"):
        if not isinstance(settings.get(name, {}), dict):
            raise UsageError(
                f"Expected names and values below {name!r} in {path}, found "
                f"{settings[name]!r:.60}; write settings there, or leave it out."
            )
    return settings


def check_texts(value: Any, folder: Path) -> None:
    """The parser opens whatever a setting names, and would wait for a pipe or device forever.

    Raises:
        UsageError: some text is the path of one, or no path could be.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise UsageError(
                f"Expected text in the settings, found {value!r:.60} with a null byte."
            )
        for path in (value, folder / value):
            if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
                raise UsageError(f"Expected settings, files or folders, found the pipe {value}.")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_texts(item, folder)
