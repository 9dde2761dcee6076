"""The evaluation of a task's answers: which one, and parts and joins of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finetune.evaluation.evaluate import evaluate_logits
from finetune.evaluation.judgement import Judgement
from finetune.evaluation.label_evaluation import evaluate_labels
from finetune.evaluation.number_evaluation import evaluate_numbers
from finetune.tasks.class_scores import Integers
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION
from finetune.tasks.task import Task


def _classes(targets: ArrayLike, outputs: ArrayLike, **known: Any) -> Judgement:
    names, paths = known["class_names"], known["paths"]
    level = known["confidence_level"]
    return evaluate_logits(
        targets,
        outputs,
        names,
        paths,
        groups=known["groups"],
        folds=known["folds"],
        confidence_level=level,
    )


def _labels(targets: ArrayLike, outputs: ArrayLike, *, half_width: None, **known: Any) -> Judgement:
    return evaluate_labels(targets, outputs, **known)


def _numbers(
    targets: ArrayLike, outputs: ArrayLike, *, thresholds: None, chosen_here: bool, **known: Any
) -> Judgement:
    return evaluate_numbers(targets, outputs, **known)


# A line a task.
JUDGES: Mapping[str, Callable[..., Judgement]] = {
    MULTICLASS.name: _classes,
    MULTILABEL.name: _labels,
    REGRESSION.name: _numbers,
}


def judge(
    task: Task,
    targets: ArrayLike,
    outputs: ArrayLike,
    class_names: Sequence[str],
    paths: Sequence[Any],
    *,
    thresholds: Sequence[float] | None = None,
    chosen_here: bool = False,
    half_width: float | None = None,
    groups: Integers | None = None,
    folds: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> Judgement:
    """All figures of a task's answers.

    Args:
        task: what was predicted.
        targets: ``(N, ...)``, as the task collates them.
        outputs: ``(N, K)``.
        class_names, paths: of the outputs and of the images.
        thresholds: probabilities above which outputs are named, where the task has them.
        chosen_here: whether they were chosen on these very images.
        half_width: of the interval about each number, where the answers have one.
        groups: ``(N,)``; images of one number are not independent, and drawn together.
        folds: the fold ``(N,)`` that each image was held out in.
        confidence_level: of all intervals.

    Raises:
        UsageError: shapes that do not belong together, or outputs that are not finite.
    """
    return JUDGES[task.name](
        targets,
        outputs,
        class_names=class_names,
        paths=paths,
        thresholds=thresholds,
        chosen_here=chosen_here,
        half_width=half_width,
        groups=groups,
        folds=folds,
        confidence_level=confidence_level,
    )


def numbered(groups: Sequence[Hashable | None]) -> Integers | None:
    """Groups ``(N,)`` as numbers; one of its own for each None, and None where all are."""
    if all(group is None for group in groups):
        return None
    of: dict[Hashable, int] = {}
    return np.array(
        [
            of.setdefault(("alone", row) if group is None else ("group", group), len(of))
            for row, group in enumerate(groups)
        ]
    )


def subset(evaluation: Judgement, index: Sequence[int]) -> Judgement:
    """The same answers to some of the images."""
    groups, rows = evaluation.groups, list(index)
    return _again(
        evaluation,
        targets=evaluation.targets[rows],
        outputs=evaluation.outputs[rows],
        paths=[evaluation.paths[row] for row in rows],
        groups=None if groups is None else groups[rows],
    )


def with_paths(evaluation: Judgement, paths: Sequence[str]) -> Judgement:
    """The same with other names of the images."""
    return _again(evaluation, paths=paths)


def with_names(evaluation: Judgement, names: Sequence[str]) -> Judgement:
    """The same with its classes or labels in another order."""
    if tuple(names) == evaluation.class_names:
        return evaluation
    order = [evaluation.class_names.index(name) for name in names]
    targets, thresholds = evaluation.targets, evaluation.thresholds
    return _again(
        evaluation,
        # An index moves; of several columns, the columns do.
        targets=np.argsort(order)[targets] if targets.ndim == 1 else targets[:, order],
        outputs=evaluation.outputs[:, order],
        class_names=names,
        thresholds=None if thresholds is None else [thresholds[index] for index in order],
    )


def _again(evaluation: Judgement, **changes: Any) -> Judgement:
    known: dict[str, Any] = {
        "targets": evaluation.targets,
        "outputs": evaluation.outputs,
        "class_names": evaluation.class_names,
        "paths": evaluation.paths,
        "thresholds": evaluation.thresholds,
        "chosen_here": evaluation.chosen_here,
        "half_width": evaluation.half_width,
        "groups": evaluation.groups,
        "confidence_level": evaluation.confidence_level,
    }
    return judge(evaluation.task, **(known | changes))
