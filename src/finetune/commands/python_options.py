"""Settings by keyword, as the options of ``finetune fit``, ``test`` and ``validate``.

A name stands for the option of that name below ``model``, ``data`` or ``trainer``. Two names could
mean several: ``strategy`` is the model's; ``seed`` is ``--seed_everything`` (order, random views,
initial weights), so that fits which differ in it share their split, and ``split_seed`` is
``--data.seed``. An option in full, such as ``"trainer.strategy"``, is taken as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

from finetune.commands.parsing import plain_value, unknown_setting
from finetune.errors import UsageError

Verb = Literal["fit", "validate", "test"]

OF_ALL = ("config", "imports", "name", "runs")
OF_FIT = ("ckpt_path", "monitor", "patience", "resume", "time_limit", "track_to", "update")
OF_JUDGING = ("allow_reuse", "share")
OF_TEST = ("track_to",)
DASHED = ("allow_reuse", "time_limit", "track_to")
FLAGS = ("allow_reuse",)
REPEATED = ("imports", "track_to")  # several values are the option several times
# Of the data module, but no settings: given by other means.
GIVEN_ELSEWHERE = {"data.root", "data.preprocessing", "data.training_seed"}


def option_names(verb: Verb) -> dict[str, str]:
    """Each keyword with the option that it stands for."""
    from lightning import Trainer

    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.training.classifier import ImageClassifier

    sections = (
        ("trainer", signature(Trainer).parameters),
        ("model", signature(ImageClassifier).parameters),
        ("data", signature(ImageFolderDataModule).parameters),
    )
    names = {name: f"{section}.{name}" for section, all_of in sections for name in all_of}
    names = {
        name: option
        for name, option in names.items()
        if option not in GIVEN_ELSEWHERE and not name.startswith("_")
    }
    own = {"fit": OF_FIT, "validate": OF_JUDGING, "test": OF_JUDGING + OF_TEST}[verb] + OF_ALL
    names |= {"strategy": "model.strategy", "seed": "seed_everything", "split_seed": "data.seed"}
    return names | {name: name for name in own}


def as_arguments(verb: Verb, settings: Mapping[str, Any]) -> list[str]:
    """What one would type on the command line.

    Args:
        verb: that gets them.
        settings: by keyword; plain values. Those of ``trainer``, ``model`` and ``data`` can also be
            given together as one mapping of that name.

    Raises:
        UsageError: a name that is no setting, or a value that cannot be written down.
    """
    names = option_names(verb)
    full = {*names.values(), "trainer.strategy"}
    options: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ("trainer", "model", "data") and isinstance(value, Mapping):
            options |= {f"{name}.{below}": each for below, each in value.items()}
        else:
            options[name if name in full else names.get(name, name)] = value
    for option in options:
        if option not in full:
            raise unknown_setting(verb, option, [*names, *full])
    return [text for option, value in options.items() for text in _typed(option, value)]


def _typed(option: str, value: Any) -> list[str]:
    """One option as it is typed: a flag alone, several values as the option several times."""
    spelled = f"--{option.replace('_', '-') if option in DASHED else option}"
    if option in FLAGS:
        return [spelled] if value else []
    several = option in REPEATED and not isinstance(value, str)
    return [f"{spelled}={_text(option, each)}" for each in (value if several else [value])]


def _text(option: str, value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    try:
        return json.dumps(value, default=_listed)
    except TypeError as error:
        raise UsageError(
            f"Expected plain values for {option}, found {type(value).__name__}; give an object as "
            '{"class_path": "package.Class", "init_args": {...}}.'
        ) from error


def _listed(value: Any) -> Any:
    plain = plain_value(value)
    if plain is value:
        raise TypeError(f"{type(value).__name__} is no plain value")
    return plain
