"""What the plain values of a checkpoint hold: hyperparameters, and the ``finetune`` entry.

One schema for classifiers and ensembles, checked when a file is read. It is about types, ranges and
lengths; whether a network of that name exists, building it tells. Further keys are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune.spec.schema import (
    Check,
    UnexpectedValue,
    by_name,
    every,
    number,
    one_of,
    optional,
    plain,
    record,
    several,
    text,
    truth,
    whole,
)

MOST_CLASSES = 100_000
MOST_NESTED = 8  # ensembles within ensembles
_SIDE = whole(1, 8192)  # pixels
_SHARE = number(0, 1)
_POSITIVE = number(math.ulp(0.0))
_TABLE = by_name(plain())

# What timm's factory takes beside the network's own arguments: it reads files, or asks a hub.
_OF_THE_FACTORY = (
    "cache_dir",
    "checkpoint_path",
    "model_name",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)


def _arguments(value: Any) -> None:
    """Arguments of a network: plain values, and none that fetches or reads anything."""
    _TABLE(value)
    for name in _OF_THE_FACTORY:
        if name in value:
            raise UnexpectedValue("arguments of a network alone", name)


CLASS_NAMES = several(text(), 2, MOST_CLASSES)

HYPER_PARAMETERS = record(
    {},
    class_names=CLASS_NAMES,
    backbone=text(),
    image_size=optional(_SIDE),
    in_chans=whole(1, 1024),
    drop_rate=_SHARE,
    drop_path_rate=_SHARE,
    network_options=optional(_arguments),
    batchnorm=one_of("auto", "eval", "train", "frozen"),
    strategy=text(100),
    optimizer=text(100),
    lr=optional(_POSITIVE),
    backbone_lr_factor=optional(number(0)),
    layer_decay=number(0),
    weight_decay=number(0),
    warmup_fraction=_SHARE,
    snapshots=whole(1, 10**6),
    label_smoothing=optional(_SHARE),
    class_weights=one_of("auto", "none", "balanced", "effective"),
    focal_gamma=number(0),
    mixup_alpha=number(0),
    cutmix_alpha=number(0),
    l2_sp=number(),
    views=whole(-(10**6), 10**6),
    teacher_share=_SHARE,
    teacher_temperature=_POSITIVE,
)

PREPROCESSING = record(
    {
        "image_size": _SIDE,
        "mean": several(number(), 1, 1024),
        "std": several(_POSITIVE, 1, 1024),
        "crop_fraction": every(_POSITIVE, _SHARE),
        "interpolation": text(20),
    }
)

DATA = record(
    {},
    root=optional(text()),
    manifest=optional(text()),
    val_fraction=optional(_SHARE),
    test_fraction=optional(_SHARE),
    seed=optional(whole(0)),
    folds=optional(whole(2, 10**6)),
    fold=optional(whole(0, 10**6)),
    group_by=optional(text()),
)

CALIBRATION = record(
    {
        "fit": record(
            {
                "temperature": _POSITIVE,
                "nll_before": number(),
                "nll_after": number(),
                "images": whole(0),
            },
            closed=True,
        )
    },
    reject=optional(
        record(
            {"threshold": _SHARE, "risk": _SHARE, "risk_bound": _SHARE, "coverage": _SHARE},
            closed=True,
        )
    ),
    conformal=optional(
        record(
            {
                "score": one_of("thr", "aps", "raps"),
                "alpha": _SHARE,
                "threshold": number(finite=False),
                "images": whole(0),
            },
            closed=True,
            penalty=number(),
            free_classes=whole(0),
            always_top=truth,
        )
    ),
    reused=truth,
    out_of_fold=truth,
)

ROLES = by_name(several(text(200)))

CLASSIFIER = record(
    {"class_names": CLASS_NAMES, "backbone": text(), "preprocessing": PREPROCESSING},
    network=record({"architecture": text(200, r"[\w.-]+", "a name"), "arguments": _arguments}),
    data=optional(DATA),
    further_data=optional(several(DATA)),
    fit=record({}, strategy=text(100), phase=whole(0, 1000)),
    calibration=optional(CALIBRATION),
    roles=optional(ROLES),
    provenance=optional(_TABLE),
)

_TABLE_MEMBER = record(
    {"name": text(), "class_names": CLASS_NAMES, "paths": several(text())},
)


def matching_channels(entry: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> None:
    """A classifier's normalisation has one mean and one std for each channel of its network.

    Raises:
        UnexpectedValue: it has others, or the class names stand there twice and differ.
    """
    channels = hyper_parameters.get("in_chans", 3)
    for key in ("mean", "std"):
        if len(entry["preprocessing"][key]) != channels:
            found = entry["preprocessing"][key]
            raise UnexpectedValue(
                f"one value a channel ({channels})", found, ("preprocessing", key)
            )
    names = list(entry["class_names"])
    if list(hyper_parameters.get("class_names", names)) != names:
        raise UnexpectedValue("the class names of the hyperparameters", names, ("class_names",))
    if len(set(names)) < len(names):
        raise UnexpectedValue("different names", names, ("class_names",))


def _classifier_member(value: Any) -> None:
    record({"name": text(), "hyper_parameters": HYPER_PARAMETERS})(value)
    CLASSIFIER(value)
    matching_channels(value, value["hyper_parameters"])


def _ensemble(depth: int) -> Check:
    def member(value: Any) -> None:
        record({"kind": one_of("classifier", "predictions", "ensemble")})(value)
        if value["kind"] == "ensemble" and depth == 0:
            raise UnexpectedValue("ensembles that are not nested deeper", value)
        kinds = {"classifier": _classifier_member, "predictions": _TABLE_MEMBER}
        (kinds.get(value["kind"]) or _ensemble(depth - 1))(value)

    def as_many_as_members(value: Any) -> None:
        if len(value["coefficients"]) != len(value["members"]):
            raise UnexpectedValue("one a member", value["coefficients"], ("coefficients",))

    return every(
        record(
            {
                "name": text(),
                "class_names": CLASS_NAMES,
                "members": several(member, 1, 10_000),
                "coefficients": several(number(0), 1, 10_000),
                "pooling": one_of("mean", "geometric", "vote"),
            },
            calibration=optional(CALIBRATION),
            roles=optional(ROLES),
        ),
        as_many_as_members,
    )


ENSEMBLE = _ensemble(MOST_NESTED)
HEAD = record({"kind": one_of("classifier", "ensemble")}, version=whole(0, 10**6))
