"""Checkpoints to be averaged: surveyed without reading their weights, then read one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from finetune.combining.ensemble_file import checkpoint_file
from finetune.combining.members import align_classes
from finetune.errors import CheckpointMismatchError
from finetune.networks.factory import build_network
from finetune.networks.final_layer import output_tensors
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoints import (
    ENTRY,
    Checkpoint,
    as_checkpoint,
    read_checkpoint,
    read_content,
)
from finetune.training.checksums import verify
from finetune.training.fitted_splits import split_records, with_fitted_split
from finetune.training.thresholds import Thresholds, thresholds_of

PREFIX = "network."


@dataclass(slots=True)
class Ingredient:
    """A checkpoint to be averaged.

    Attributes:
        checkpoint: what it says of itself, without its weights and its validation answers.
        averaged_during_training: whether its weights are a moving average already.
        unread: its weights as :func:`survey` mapped them, untouched and so without memory of their
            own; the first reading takes them, and later ones map the file again.
    """

    checkpoint: Checkpoint
    thresholds: Thresholds | None
    averaged_during_training: bool
    unread: dict[str, Tensor] | None = None

    @property
    def name(self) -> str:
        """Its file."""
        return str(self.checkpoint.path)

    @property
    def batchnorm(self) -> str:
        """How it was tuned: ``eval``, ``train`` or ``frozen``."""
        return str(self.checkpoint.hyper_parameters.get("batchnorm", "eval"))

    @property
    def fitted_on(self) -> tuple[SplitRecord, ...]:
        """How its images were split, and for an average those of its members that differ."""
        return split_records(self.checkpoint.details)

    @property
    def roles(self) -> Mapping[str, Sequence[str]]:
        """Which images picked or calibrated before."""
        return self.checkpoint.details.get("roles") or {}


def survey(paths: Sequence[str | Path]) -> list[Ingredient]:
    """Check that the checkpoints can be averaged at all.

    Raises:
        CheckpointError: a file that is no classifier's checkpoint.
        CheckpointMismatchError: none given, or another network, other classes, other preprocessing
            or no weights.
    """
    if not paths:
        raise CheckpointMismatchError("Expected checkpoints to average, found none; name some.")
    ingredients = [_look_at(checkpoint_file(path)) for path in paths]
    first, *others = (each.checkpoint for each in ingredients)
    for other in others:
        align_classes(other.class_names, first.class_names, source=str(other.path))
        for name in ("task", "network", "preprocessing"):
            expected, found = getattr(first, name), getattr(other, name)
            if expected != found:
                raise CheckpointMismatchError(
                    f"Expected {name} {_short(expected)} as in {first.path}, found "
                    f"{_short(found)} in {other.path}; combine them with `finetune ensemble`."
                )
    return ingredients


def read_ingredient(ingredient: Ingredient, class_names: Sequence[str]) -> dict[str, Tensor]:
    """The weights, mapped from the file, with the final layer's rows in the order of the names."""
    state_dict, ingredient.unread = ingredient.unread, None
    if state_dict is None:
        state_dict = read_checkpoint(ingredient.checkpoint.path, mmap=True).state_dict
    own = ingredient.checkpoint
    order = align_classes(own.class_names, class_names, source=str(own.path))
    if order is None:
        return state_dict
    with torch.device("meta"):
        network = build_network(own.network, own.task.number_of_outputs(class_names))
    rows = {PREFIX + name for name in output_tensors(network)}
    if not rows:
        raise CheckpointMismatchError(
            f"Expected classes in the order {list(class_names)[:5]} in {own.path}, found "
            f"another, and {own.network.architecture} has no final layer to reorder; "
            "combine them with `finetune ensemble`."
        )
    return {name: t[order] if name in rows else t for name, t in state_dict.items()}


def _look_at(path: Path) -> Ingredient:
    content = read_content(path, mmap=True)
    checkpoint = as_checkpoint(content, path)
    verify(content, ENTRY, path, parts=("state_dict",))  # mapped, so not when it was read
    if not checkpoint.state_dict:
        raise CheckpointMismatchError(
            f"Expected weights in {path}, found none; give a file that `finetune fit` wrote."
        )
    details = with_fitted_split(path, checkpoint.details)
    # Tensors of the last validation would keep the whole file mapped.
    light = {key: value for key, value in details.items() if key != "val"}
    return Ingredient(
        replace(checkpoint, state_dict={}, details=light),
        thresholds=thresholds_of(checkpoint.task, details),
        averaged_during_training="current_model_state" in content,
        unread=checkpoint.state_dict,
    )


def _short(value: object) -> str:
    return str(value)[:120]
