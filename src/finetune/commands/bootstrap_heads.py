"""``finetune ensemble RUN --heads N``: many final layers on the backbone of one fit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.runtime import Runtime


def heads_on_one_backbone(options: argparse.Namespace, runtime: Runtime) -> Ensemble:
    """Fit final layers on bootstrap samples of the training images' features.

    The backbone runs once an image, now and whenever the ensemble answers.

    Args:
        options: of ``finetune ensemble``.
        runtime: where the backbone runs.

    Raises:
        UsageError: several checkpoints, or no images.
    """
    if len(options.checkpoints) != 1 or options.root is None:
        raise UsageError(
            f"Expected one checkpoint and its images beside --heads, found "
            f"{len(options.checkpoints)} and {options.root or 'no --data.root'}; "
            "give RUN --heads 10 --data.root DIR."
        )
    from finetune.combining.bootstrap_heads import bootstrap_heads, ensemble_of_heads
    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.held_out_images import build_datamodule
    from finetune.training.classifier import ImageClassifier
    from finetune.training.features.extract import dataset_for, frozen_features
    from finetune.training.fitted_splits import split_records, with_fitted_split

    path = checkpoint_file(options.checkpoints[0])
    classifier = runtime.place(ImageClassifier.from_checkpoint(path))
    classifier.details = with_fitted_split(path, classifier.details)
    records = split_records(classifier.details)
    datamodule = build_datamodule(options, records, classifier.class_names)
    images, workers = dataset_for(classifier, datamodule, "train")
    features = frozen_features(classifier, images, num_workers=workers).tensor()
    labels = classifier.task.collate([image.label for image in datamodule.images("train")])
    heads = bootstrap_heads(
        features, labels, len(classifier.class_names), heads=options.heads, seed=options.seed
    )
    return ensemble_of_heads(classifier, heads)
