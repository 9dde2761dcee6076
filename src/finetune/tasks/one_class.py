"""What only one class an image has so far, refused in one line for every other task."""

from __future__ import annotations

from finetune.errors import UsageError
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task


def only_one_class(task: Task, what: str, *, instead: str) -> None:
    """Refuse what is not there yet for several labels an image.

    Raises:
        UsageError: the task is another.
    """
    if task != MULTICLASS:
        raise UsageError(
            f"Expected one class an image for {what}, found the task {task.name}, for which there "
            f"is none yet; {instead}."
        )
