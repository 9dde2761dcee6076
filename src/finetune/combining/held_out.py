"""Held-out pictures, their labels in the members' class order, and what the members answered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finetune.combining.roles import picture_id
from finetune.errors import CheckpointMismatchError


@dataclass(frozen=True, slots=True)
class HeldOut:
    """N labelled pictures and M members' answers to them.

    Attributes:
        paths, ids: ``N`` file names and content fingerprints.
        labels: ``(N,)``, indexes into the members' class names.
        member_probabilities: ``(M, N, C)``; empty as long as nothing was computed.
        seconds: each member's time for all pictures.
    """

    paths: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Tensor
    member_probabilities: Tensor
    seconds: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """The same for the same pictures in the same order."""
        return hashlib.blake2b("\n".join(self.ids).encode(), digest_size=16).hexdigest()

    def with_answers(self, member_probabilities: Tensor, seconds: Sequence[float]) -> HeldOut:
        """The same pictures, answered."""
        return replace(self, member_probabilities=member_probabilities, seconds=tuple(seconds))

    def of(self, members: Sequence[int]) -> HeldOut:
        """Only some members' answers."""
        return replace(
            self,
            member_probabilities=self.member_probabilities[list(members)],
            seconds=tuple(self.seconds[index] for index in members),
        )


def held_out_pictures(datamodule: Any, split: str, class_names: Sequence[str]) -> HeldOut:
    """The pictures of a split, unanswered.

    Args:
        datamodule: an ``ImageFolderDataModule``, or anything with its ``images(split)`` and
            ``class_names``.
        split: for example ``val``.
        class_names: the members'; labels are indexes into these.

    Raises:
        CheckpointMismatchError: the pictures have a class that the members do not know.
    """
    images = datamodule.images(split)
    own = tuple(datamodule.class_names)
    unknown = sorted({own[image.label] for image in images} - set(class_names))
    if unknown:
        raise CheckpointMismatchError(
            f"Expected {split} pictures of the members' classes {list(class_names)[:8]}, found "
            f"also {unknown[:8]}; take the folder that the members were trained on."
        )
    position = {name: index for index, name in enumerate(class_names)}
    labels = [position[own[image.label]] for image in images]
    paths = tuple(str(image.path) for image in images)
    return HeldOut(
        paths=paths,
        ids=tuple(picture_id(path) for path in paths),
        labels=torch.tensor(labels, dtype=torch.long),
        member_probabilities=torch.empty(0, len(labels), len(class_names)),
    )


def out_of_fold(folds: Sequence[HeldOut]) -> HeldOut:
    """Answers of the members of one cross-validation, each to the pictures that it did not see.

    The members of one recipe, one a fold, become one row of answers to all pictures. With one such
    row a recipe, :func:`finetune.combining.selection.select_members` picks among recipes.

    Args:
        folds: one held-out part each, answered by the one member that was not trained on it.

    Raises:
        CheckpointMismatchError: a picture is in two parts, or a part has several members' answers.
    """
    ids = [identity for fold in folds for identity in fold.ids]
    twice = {identity for identity, count in Counter(ids).items() if count > 1}
    members = {len(fold.member_probabilities) for fold in folds}
    if twice or members != {1}:
        raise CheckpointMismatchError(
            f"Expected folds without common pictures and one member for each, found {len(twice)} "
            f"common ones and {sorted(members)} members; give each fold its own member alone."
        )
    return HeldOut(
        paths=tuple(path for fold in folds for path in fold.paths),
        ids=tuple(ids),
        labels=torch.cat([fold.labels for fold in folds]),
        member_probabilities=torch.cat([fold.member_probabilities for fold in folds], dim=1),
        seconds=(sum(sum(fold.seconds) for fold in folds),),
    )
