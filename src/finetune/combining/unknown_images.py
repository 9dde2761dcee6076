"""The images from which a rule for unknown ones is fitted, as the network sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from finetune.combining.member_outputs import DataModules, MemberOutputs
from finetune.combining.unknown import UnknownRule, fit_unknown
from finetune.errors import CalibrationError
from finetune.spec.images import Split
from finetune.spec.labels import indexes
from finetune.spec.protocols import FitData
from finetune.tasks.multiclass import MULTICLASS
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
    classifier = members.first_classifier
    if classifier is None or isinstance(datamodule, Mapping):
        found = "saved predictions alone" if classifier is None else "the folds of one"
        raise CalibrationError(
            f"Expected a classifier that held out images of one split to know strangers by, found "
            f"{found}; leave --unknown out."
        )
    data = cast(FitData, datamodule)  # what is decoded for members is decoded for features
    calibrating = set(rows)
    known, judged = list(data.images("train")), data.images(split)
    held_out = [image for row, image in enumerate(judged) if row in calibrating]
    if not members.out_of_fold.isdisjoint(image.id for image in held_out):
        # All have learnt, but no image has moved the features: the others are as good to know by.
        known += [image for row, image in enumerate(judged) if row not in calibrating]
    features = []
    for side, wanted in (("train", known), (split, held_out)):
        if not wanted:
            raise CalibrationError(
                f"Expected {side} images to know unknown ones by, found none; give --data.root of "
                "the fit, and of a refitted one not --share all."
            )
        dataset, workers = dataset_for(classifier, data, split)
        dataset.images = wanted
        kept = frozen_features(classifier, dataset, store=store, num_workers=workers)
        features.append(kept.tensor().flatten(1))
    strata = torch.tensor(members.task.strata(members.task.collate([i.label for i in known])))
    having = None
    if members.task != MULTICLASS:
        names = range(len(data.class_names) if members.task.has_choices else 0)
        having = torch.tensor([[n in indexes(i.label) for n in names] for i in known]).bool()
    return fit_unknown(features[0], strata, features[1], alpha=alpha, having=having)
