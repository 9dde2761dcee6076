"""The images from which a rule for unknown ones is fitted, as the network sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from finetune.combining.member_outputs import DataModules, MemberOutputs
from finetune.combining.unknown import UnknownRule, fit_unknown
from finetune.errors import CalibrationError
from finetune.spec.images import Split
from finetune.spec.protocols import FitData
from finetune.tasks.one_class import only_one_class
from finetune.training.features.extract import dataset_for, frozen_features
from finetune.training.features.store import FeatureStore


def rule_for(
    members: MemberOutputs,
    datamodule: DataModules,
    split: Split,
    rows: Sequence[int],
    *,
    alpha: float,
    store: FeatureStore | None = None,
) -> UnknownRule:
    """Fit a rule to the features of the first classifier.

    Args:
        members: with a classifier among them.
        datamodule: its training images, and those held out.
        split, rows: which images are known and were held out.
        alpha: accepted share of false alarms.
        store: where features are looked up and kept.

    Raises:
        CalibrationError: no classifier, folds, or too few images.
        NetworkError: a network without features of its own.
    """
    only_one_class(members.task, "--unknown", instead="leave --unknown out")
    classifier = members.first_classifier
    if classifier is None or isinstance(datamodule, Mapping):
        found = "saved predictions alone" if classifier is None else "the folds of one"
        raise CalibrationError(
            f"Expected a classifier that held out images of one split to know strangers by, found "
            f"{found}; leave --unknown out."
        )
    data = cast(FitData, datamodule)  # what is decoded for members is decoded for features
    features = {}
    for side in dict.fromkeys(("train", split)):
        images, workers = dataset_for(classifier, data, side)
        if not images.images:
            raise CalibrationError(
                f"Expected {side} images to know unknown ones by, found none; give --data.root of "
                "the fit."
            )
        found_there = frozen_features(classifier, images, store=store, num_workers=workers)
        features[side] = found_there.tensor().flatten(1)
    trained = data.images("train")
    strata = members.task.strata(members.task.collate([image.label for image in trained]))
    return fit_unknown(
        features["train"], torch.tensor(strata), features[split][list(rows)], alpha=alpha
    )
