"""Held-out images, their labels in the members' class order, and what the members answered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.errors import CheckpointMismatchError
from finetune.spec.images import Split
from finetune.spec.labels import indexes, moved
from finetune.spec.protocols import HeldOutData
from finetune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class HeldOut:
    """N labelled images and M members' answers to them.

    Attributes:
        paths, ids: ``N`` file names, and ids of whole contents.
        labels: ``(N,)``, indexes into the members' class names.
        member_logits: ``(M, N, C)``; empty as long as nothing was computed. Of a
            cross-validation a row a recipe, whose folds share the work.
        seconds: each row's time for all images.
        columns: which members answered for each row, ``M`` tuples; empty: each member for itself.
        refitted: whether members that have learnt from some of these images answered them as they
            would have without.
    """

    paths: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Tensor
    member_logits: Tensor
    seconds: tuple[float, ...] = ()
    columns: tuple[tuple[int, ...], ...] = ()
    refitted: bool = False

    @property
    def is_out_of_fold(self) -> bool:
        """Whether what answers later has seen these images, and what answered here has not."""
        return bool(self.columns) or self.refitted

    def of_rows(self, coefficients: Sequence[float]) -> list[float]:
        """The members' coefficients ``(members,)`` added up for each row, ``(M,)``."""
        if not self.columns:
            return list(coefficients)
        return [sum(coefficients[index] for index in column) for column in self.columns]

    def of_members(self, coefficients: Sequence[float]) -> list[float]:
        """The rows' coefficients ``(M,)``, dealt out equally to the members of each row."""
        if not self.columns:
            return list(coefficients)
        dealt = [0.0] * sum(map(len, self.columns))
        for coefficient, column in zip(coefficients, self.columns, strict=True):
            for index in column:
                dealt[index] = coefficient / len(column)
        return dealt

    @property
    def key(self) -> str:
        """The same for the same images in the same order."""
        return hashlib.blake2b("\n".join(self.ids).encode(), digest_size=16).hexdigest()

    def with_answers(self, member_logits: Tensor, seconds: Sequence[float]) -> HeldOut:
        """The same images, answered."""
        return replace(self, member_logits=member_logits, seconds=tuple(seconds))

    def of(self, members: Sequence[int]) -> HeldOut:
        """Only some members' answers; rows that several share stay or go as a whole."""
        rows, columns = list(members), self.columns
        if columns:
            position = {member: index for index, member in enumerate(members)}
            rows = [row for row, column in enumerate(columns) if position.keys() >= {*column}]
            columns = tuple(tuple(position[index] for index in columns[row]) for row in rows)
        return replace(
            self,
            member_logits=self.member_logits[rows],
            seconds=tuple(self.seconds[row] for row in rows),
            columns=columns,
        )


def held_out_images(
    task: Task, datamodule: HeldOutData, split: Split, class_names: Sequence[str]
) -> HeldOut:
    """The images of a split, unanswered.

    Args:
        task: of the members.
        datamodule: whose images.
        split: for example ``val``.
        class_names: the members'; labels are indexes into these.

    Raises:
        CheckpointMismatchError: the images have a class that the members do not know.
    """
    images = datamodule.images(split)
    own = tuple(datamodule.class_names)
    had = {own[index] for image in images for index in indexes(image.label)}
    unknown = sorted(had - set(class_names))
    if unknown:
        raise CheckpointMismatchError(
            f"Expected {split} images of the members' classes {list(class_names)[:8]}, found "
            f"also {unknown[:8]}; take the folder that the members were trained on."
        )
    position = {name: index for index, name in enumerate(class_names)}
    positions = [position.get(name, -1) for name in own]
    labels = [moved(image.label, positions, len(class_names)) for image in images]
    paths = tuple(str(image.path) for image in images)
    return HeldOut(
        paths=paths,
        ids=tuple(image.id for image in images),
        labels=task.collate(labels),
        member_logits=torch.empty(0, len(labels), task.number_of_outputs(class_names)),
    )


def out_of_fold(
    folds: Sequence[HeldOut], *, columns: Sequence[Sequence[int]] | None = None
) -> HeldOut:
    """Answers of the members of one cross-validation, each to the images that it did not see.

    The members of one recipe, one a fold, become one row of answers to all images. With one such
    row a recipe, :func:`finetune.combining.selection.select_members` picks among recipes.

    Args:
        folds: one held-out part each, answered by a member a recipe that was not trained on it.
        columns: the members of each recipe; for None, one recipe with as many as there are folds.

    Raises:
        CheckpointMismatchError: an image is in two parts, or parts have other numbers of answers.
    """
    parts_with = Counter(identity for fold in folds for identity in {*fold.ids})
    twice = [identity for identity, count in parts_with.items() if count > 1]
    columns = [range(len(folds))] if columns is None else columns
    members = {len(fold.member_logits) for fold in folds}
    if twice or members != {len(columns)}:
        raise CheckpointMismatchError(
            f"Expected folds without common images and {len(columns)} answers for each, found "
            f"{len(twice)} common ones and {sorted(members)} answers; "
            "give each fold its own members alone."
        )
    return HeldOut(
        paths=tuple(path for fold in folds for path in fold.paths),
        ids=tuple(identity for fold in folds for identity in fold.ids),
        labels=torch.cat([fold.labels for fold in folds]),
        member_logits=torch.cat([fold.member_logits for fold in folds], dim=1),
        seconds=tuple(map(sum, zip(*(fold.seconds for fold in folds), strict=True))),
        columns=tuple(tuple(column) for column in columns),
    )
