"""Every task by its name, as checkpoints have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from finetune.errors import CheckpointError
from finetune.spec.labels import Label
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (MULTICLASS, MULTILABEL, REGRESSION)}


def task_for(labels: Iterable[Label]) -> Task:
    """What labels of this kind are of; without any, one class an image."""
    for label in labels:
        if isinstance(label, float):
            return REGRESSION
        return MULTILABEL if isinstance(label, tuple) else MULTICLASS
    return MULTICLASS


def target_of(label: Label) -> int | Tensor:
    """What one image is learned by and judged by, as batches collate it."""
    return label if isinstance(label, int) else task_for([label]).collate([label])[0]


def task_of(entry: Mapping[str, Any], path: object) -> Task:
    """What a checkpoint's entry says is predicted; of earlier versions, one class an image.

    Raises:
        CheckpointError: a task of a later version; ``path`` is for the message.
    """
    name = entry.get("task", MULTICLASS.name)
    if not isinstance(name, str) or name not in TASKS:
        raise CheckpointError(
            f"Expected one of the tasks {', '.join(TASKS)} in {path}, found "
            f"{str(name)[:50]!r}; update finetune."
        )
    return TASKS[name]
