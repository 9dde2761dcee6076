"""``finetune ensemble RUN --heads N``: many final layers on the backbone of one fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.combining.ensemble import Ensemble
    from finetune.commands.guest import Where
    from finetune.commands.held_out_images import HeldOut
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.runtime import Runtime
    from finetune.training.classifier import ImageClassifier
    from finetune.training.linear_probe import Probe


def heads_on_one_backbone(
    checkpoints: Sequence[str],
    data: Where | None,
    held_out: HeldOut,
    runtime: Runtime,
    *,
    heads: int,
    seed: int,
) -> Ensemble:
    """Fit final layers on bootstrap samples of the training images' features.

    The backbone runs once an image, now and whenever the ensemble answers.

    Args:
        checkpoints: one.
        data: the folder of images that it was fitted on.
        held_out: how the images are read.
        runtime: where the backbone runs.
        heads: how many.
        seed: of the samples.

    Raises:
        UsageError: several checkpoints, or no images.
    """
    if len(checkpoints) != 1 or data is None:
        raise UsageError(
            f"Expected one checkpoint and its images beside --heads, found "
            f"{len(checkpoints)} and {data or 'no --data.root'}; "
            "give RUN --heads 10 --data.root DIR."
        )
    from finetune.combining.bootstrap_heads import bootstrap_heads, ensemble_of_heads
    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.held_out_images import build_datamodule
    from finetune.training.classifier import ImageClassifier
    from finetune.training.features.extract import dataset_for, frozen_features
    from finetune.training.fitted_splits import (
        out_of_fold_answers,
        split_records,
        with_fitted_split,
    )
    from finetune.training.phases.probe import solver_of, targets_of

    path = checkpoint_file(checkpoints[0])
    classifier = runtime.place(ImageClassifier.from_checkpoint(path))
    classifier.details = with_fitted_split(path, classifier.details)
    records = split_records(classifier.details)
    datamodule = build_datamodule(data, held_out, records, classifier.class_names)
    images, workers = dataset_for(classifier, datamodule, "train")
    features = frozen_features(classifier, images, num_workers=workers).tensor()
    labels = targets_of(classifier, datamodule.images("train"))
    outputs, fit = len(classifier.class_names), solver_of(classifier.task)
    learned = classifier.unit.standardised(labels)
    fitted = bootstrap_heads(features, learned, outputs, heads=heads, seed=seed, fit=fit)
    kept = []
    if out_of_fold_answers(classifier.details):  # what was held out has learnt as well
        kept = _kept_answers(classifier, datamodule, features, labels, fitted, seed)
    return ensemble_of_heads(classifier, fitted, kept)


def _kept_answers(
    classifier: ImageClassifier,
    datamodule: ImageFolderDataModule,
    features: Tensor,
    labels: Tensor,
    heads: Sequence[Probe],
    seed: int,
) -> list[dict[str, Any]]:
    """What a checkpoint keeps of each head's answers to images that it was fitted without."""
    import torch

    from finetune.combining.bootstrap_heads import answers_without
    from finetune.training.held_out_pass import kept_answers
    from finetune.training.penalty_search import FOLDS, stratified_parts
    from finetune.training.phases.probe import group_numbers, solver_of

    groups = group_numbers(datamodule.together(datamodule.images("train")))
    strata = torch.tensor(classifier.task.strata(labels))
    fold_of = stratified_parts(strata, groups, FOLDS, seed)
    rows = (fold_of >= 0).nonzero()[:, 0].tolist()
    learned, fit = classifier.unit.standardised(labels), solver_of(classifier.task)
    answers = answers_without(features, learned, heads, fold_of, seed=seed, fit=fit)
    found = [(classifier.unit(logits[rows]), labels[rows]) for logits in answers]
    return [
        {**kept_answers(datamodule, ("train",), each, rows), "out_of_fold": True} for each in found
    ]
