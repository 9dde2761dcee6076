"""What a pass over held-out images says on the terminal: figures, and what they hang on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from finetune.evaluation.clusters import about_groups, share_interval
from finetune.evaluation.number_evaluation import evaluate_numbers
from finetune.evaluation.scores import dominant_image
from finetune.tasks.class_scores import Integers
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task

Intervals = Mapping[str, tuple[float, float]]


def intervals_of(
    task: Task, outputs: Tensor, targets: Tensor, groups: Integers | None
) -> Intervals:
    """The 95 % interval of the accuracy, or of each figure of numbers; of several labels none.

    Args:
        task: what was predicted.
        outputs, targets: of ``N`` images.
        groups: ``(N,)``; images of one number are not independent.
    """
    if task == MULTICLASS:
        return {"accuracy": share_interval((task.decide(outputs) == targets).numpy(), groups)}
    if task.has_choices:
        return {}
    return evaluate_numbers(targets.numpy(), outputs.numpy(), groups=groups).intervals


def say_figures(
    task: Task, stage: str, figures: Mapping[str, float], intervals: Intervals, images: int
) -> None:
    """One line: accuracy with its interval, balanced accuracy, NLL, calibration error.

    Of another task than one class an image, all of its figures, with their intervals if known.
    """
    if task == MULTICLASS:
        low, high = intervals["accuracy"]
        line = (
            f"accuracy {figures['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
            f"{images} images), balanced accuracy {figures['balanced_accuracy']:.3f}, "
            f"NLL {figures['nll']:.3f}, calibration error {figures['calibration_error']:.3f}"
        )
    else:
        digits = ".3f" if task.has_choices else ".4g"  # numbers have the user's unit
        told = [f"{name.replace('_', ' ')} {figures[name]:{digits}}" for name in figures]
        for place, (low, high) in enumerate(intervals.values()):
            told[place] += f" ({low:.4g} to {high:.4g})"
        line = f"{', '.join(told)} ({images} images{'; 95 % intervals' * bool(intervals)})"
    print(f"{stage}: {line}", flush=True)


def say_what_they_hang_on(
    task: Task,
    outputs: Tensor,
    targets: Tensor,
    groups: Integers | None,
    paths: Sequence[str | Path],
) -> None:
    """A line where images are not independent, and where one alone decides the likelihood."""
    if task == MULTICLASS:
        right = (task.decide(outputs) == targets).numpy()
        if note := about_groups(right, groups):
            print(note, flush=True)
    losses = task.losses(outputs, targets).numpy()
    if task.has_choices and (dominant := dominant_image(losses, paths)):
        print(dominant, flush=True)
