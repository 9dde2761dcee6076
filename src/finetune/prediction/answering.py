"""A batch of views into answers: what every way of predicting does, whoever brings the batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, empty

from finetune.combining.calibrated_answer import Answer
from finetune.combining.ensemble import Ensemble
from finetune.combining.test_time_augmentation import View, mean_over_views
from finetune.errors import CheckpointMismatchError
from finetune.prediction.predictions import Predictions
from finetune.tasks.task import Task
from finetune.training.features.recorded import recorded_features

Outputs = tuple[Tensor, Tensor]


def outputs_of(
    model: Ensemble,
    views: Sequence[Tensor],
    paths: Sequence[Path],
    augmentations: Sequence[View],
) -> Outputs:
    """What the members say of B images, and how strange these are.

    Args:
        model: in ``eval`` mode.
        views: ``uint8 (B, C, S, S)`` for each preprocessing, where the model is.
        paths: one an image.
        augmentations: of :mod:`finetune.combining.test_time_augmentation`.

    Returns:
        Outputs ``(M, B, C)``, and strangeness ``(B,)`` where there is a rule, else empty.

    Raises:
        CheckpointMismatchError: a rule for unknown images without a final layer.
    """
    by_preprocessing = dict(zip(model.preprocessings, views, strict=True))
    named = [str(path) for path in paths]
    rule = model.unknown
    with recorded_features(model.first_classifier if rule else None) as features:
        outputs = mean_over_views(
            model.task,
            lambda images: model.member_logits(images, named),
            by_preprocessing,
            augmentations,
        )
    if rule is None:
        return outputs, empty(0)
    if not features:
        raise CheckpointMismatchError(
            "Expected a classifier with a final layer beside the rule for unknown images, "
            "found none; calibrate without --unknown."
        )
    return outputs, rule.strangeness(features[0])


def predictions_of(model: Ensemble, outputs: Outputs, paths: Sequence[Path]) -> Predictions:
    """The answers for N images, whose outputs ``(M, N, C)`` are on the CPU."""
    members, strangeness = outputs
    known = strangeness if model.unknown is not None else None
    return as_predictions(
        model.answer(members), model.task, model.class_names, paths, strangeness=known
    )


def as_predictions(
    answer: Answer,
    task: Task,
    class_names: Sequence[str],
    paths: Sequence[Path],
    *,
    strangeness: Tensor | None = None,
) -> Predictions:
    """An answer about N images with the names that belong to it."""
    return Predictions(
        task=task,
        paths=tuple(paths),
        probabilities=answer.probabilities,
        logits=answer.logits,
        class_names=tuple(class_names),
        member_probabilities=answer.member_probabilities,
        disagreement=answer.disagreement,
        rejected=answer.rejected,
        prediction_sets=answer.prediction_sets,
        thresholds=answer.thresholds,
        half_width=answer.half_width,
        strangeness=strangeness,
    )
