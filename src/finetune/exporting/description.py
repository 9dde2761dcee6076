"""What a stranger's program needs beside the weights, as plain values for JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from finetune.combining.ensemble import Ensemble
from finetune.distribution import own_version
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import plain
from finetune.training.fitted_splits import SPLIT_ENTRIES

VERSION = 1
# Names of files, and which images were fitted on, picked and calibrated.
_AT_HOME = {"name", "roles", "out_of_fold", *SPLIT_ENTRIES}
# Of a classifier's hyperparameters, those that shape its network; the rest is about training.
NETWORK = ("class_names", "backbone", "image_size", "in_chans", "network_options")


def input_names(ensemble: Ensemble) -> tuple[str, ...]:
    """``images``, or ``images_0``, ``images_1``, ... where members want different preprocessing."""
    count = len(ensemble.preprocessings)
    return ("images",) if count == 1 else tuple(f"images_{index}" for index in range(count))


def output_name(ensemble: Ensemble) -> str:
    """``probabilities``, or ``numbers`` in the user's unit."""
    return "probabilities" if ensemble.task.has_choices else "numbers"


def describe_export(ensemble: Ensemble) -> dict[str, Any]:
    """Classes, inputs with their preprocessing, output, calibration, and how members are pooled.

    Of several labels an image also the thresholds, probabilities above which each is named.

    There is no infinity in JSON: a conformal threshold of ``null`` means that every class is in
    every set. Names of files and what was fitted on which images stay at home.
    """
    entry = _public(ensemble.describe())
    thresholds = ensemble.thresholds
    return {
        "version": VERSION,
        "producer": f"finetune {own_version()}",
        "inputs": [
            _input(name, preprocessing)
            for name, preprocessing in zip(
                input_names(ensemble), ensemble.preprocessings, strict=True
            )
        ],
        "output": output_name(ensemble),
        **({} if thresholds is None else {"thresholds": list(thresholds)}),
        **entry,
    }


def as_json(description: Mapping[str, Any]) -> str:
    """Strict JSON, readable for people, too."""
    return json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)


def ensemble_entry(description: Mapping[str, Any]) -> dict[str, Any]:
    """Back to what ``build_ensemble`` takes; only the members' names are lost."""
    entry = {**description, "name": "ensemble"}
    if entry.get("calibration"):
        entry["calibration"] = _with_threshold(entry["calibration"], None, math.inf)
    if "members" in entry:
        entry["members"] = [
            {**ensemble_entry(member), "name": f"member {index}"}
            for index, member in enumerate(entry["members"])
        ]
    return entry


def _input(name: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """How an image becomes this input; normalisation is none of the stranger's business."""
    return {
        "name": name,
        "channels": preprocessing.in_chans,
        "resize_short_side": preprocessing.resize_size,
        "resize_long_side": preprocessing.long_side,
        "interpolation": preprocessing.interpolation,
        "centre_crop": preprocessing.image_size,
        "range": [0, 1],
    }


def _public(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in _AT_HOME}
    if ":" in kept.get("backbone", ""):  # a folder of the user's, or a hub that nobody need ask
        kept["backbone"] = kept["network"]["architecture"]
        kept["hyper_parameters"] = {**kept["hyper_parameters"], "backbone": kept["backbone"]}
    if "hyper_parameters" in kept:
        kept["hyper_parameters"] = {
            name: kept["hyper_parameters"][name]
            for name in NETWORK
            if name in kept["hyper_parameters"]
        }
    if kept.get("calibration"):
        kept["calibration"] = _with_threshold(kept["calibration"], math.inf, None)
    if "members" in kept:
        kept["members"] = [_public(member) for member in kept["members"]]
    return plain(kept)


def _with_threshold(calibration: dict[str, Any], old: Any, new: Any) -> dict[str, Any]:
    """The same calibration with another word for a conformal threshold that is infinite."""
    conformal = calibration.get("conformal")
    if conformal is None or conformal["threshold"] != old:
        return calibration
    return {**calibration, "conformal": {**conformal, "threshold": new}}
