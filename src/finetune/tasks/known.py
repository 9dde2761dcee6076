"""Every task by its name, as checkpoints have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.errors import CheckpointError
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (MULTICLASS,)}


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
