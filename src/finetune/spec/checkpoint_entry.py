"""What the plain values of a checkpoint hold: hyperparameters, and the ``finetune`` entry.

One schema for classifiers and ensembles, checked when a file is read. It is about types, ranges and
lengths; whether a network of that name exists, building it tells. Further keys are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from finetune.spec.choices import Strangeness
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
from finetune.spec.settings import DATA as RANGES_OF_DATA
from finetune.spec.settings import MODEL, OPEN_SHARE, POSITIVE, SHARE, SIDE

MOST_CLASSES = 100_000
MOST_NESTED = 8  # ensembles within ensembles
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


CLASS_NAMES = several(text(), 1, MOST_CLASSES)  # how many the task needs, it says itself

# What earlier versions took without a word, and answer the same with it.
_TAKEN_EARLIER = {"l2_sp": number(), "views": whole(-(10**6), 10**6), "seed": whole(-(2**63))}

HYPER_PARAMETERS = record(
    {},
    {
        **MODEL,
        **_TAKEN_EARLIER,
        "class_names": CLASS_NAMES,
        "backbone": text(),
        "network_options": optional(_arguments),
        "strategy": text(100),
        "optimizer": text(100),
    },
)

PREPROCESSING = record(
    {
        "image_size": SIDE,
        "mean": several(number(), 1, 1024),
        "std": several(POSITIVE, 1, 1024),
        "crop_fraction": every(POSITIVE, SHARE),
        "interpolation": text(20),
    }
)

_DEALING = ("val_fraction", "test_fraction", "folds", "fold")
DATA = record(
    {},
    {name: optional(RANGES_OF_DATA[name]) for name in _DEALING},
    seed=optional(_TAKEN_EARLIER["seed"]),
    root=optional(text()),
    manifest=optional(text()),
    group_by=optional(text()),
)

# Of probabilities; their logits are finite.
_THRESHOLDS = several(number(1e-12, 1 - 1e-12), 2, MOST_CLASSES)

CALIBRATION = record(
    {
        "fit": optional(
            record(
                {
                    "temperature": POSITIVE,
                    "nll_before": number(),
                    "nll_after": number(),
                    "images": whole(0),
                },
                closed=True,
            )
        )
    },
    reject=optional(
        record(
            {"threshold": SHARE, "risk": SHARE, "risk_bound": SHARE, "coverage": SHARE},
            closed=True,
        )
    ),
    conformal=optional(
        record(
            {
                "score": one_of("thr", "aps", "raps"),
                "alpha": SHARE,
                "threshold": number(finite=False),
                "images": whole(0),
            },
            closed=True,
            penalty=number(),
            free_classes=whole(0),
            always_top=truth,
            of_labels=truth,
        )
    ),
    thresholds=optional(_THRESHOLDS),
    interval=optional(
        record({"alpha": SHARE, "half_width": number(0), "images": whole(0)}, closed=True)
    ),
    scaling=optional(
        record(
            {
                "factors": several(POSITIVE, 2, MOST_CLASSES),
                "shifts": several(number(), 2, MOST_CLASSES),
                "nll_after": number(),
            },
            closed=True,
        )
    ),
    precision=optional(OPEN_SHARE),
    reused=truth,
    out_of_fold=truth,
)

# Beside these three tensors: ``rows (K, D)``, ``directions (R, D)`` and ``offsets (K,)``.
UNKNOWN = record(
    {
        "score": one_of(*get_args(Strangeness)),
        "floor": number(0),
        "alpha": SHARE,
        "threshold": number(0),
        "images": whole(1),
        "auroc": optional(several(SHARE, 3, 3)),
    }
)

ROLES = by_name(several(text(200)))

# Of a member, beside the weights: a checkpoint of its own has them with its val answers.
OUT_OF_FOLD = record({"ids": several(text(200)), "logits": several(several(number()))})

CLASSIFIER = record(
    {"class_names": CLASS_NAMES, "backbone": text(), "preprocessing": PREPROCESSING},
    network=record({"architecture": text(200, r"[\w.-]+", "a name"), "arguments": _arguments}),
    data=optional(DATA),
    further_data=optional(several(DATA)),
    fit=record({}, strategy=text(100), phase=whole(0, 1000)),
    calibration=optional(CALIBRATION),
    thresholds=optional(_THRESHOLDS),
    roles=optional(ROLES),
    unknown=optional(UNKNOWN),
    out_of_fold=optional(OUT_OF_FOLD),
    provenance=optional(_TABLE),
    licence=text(1000),
)

_TABLE_MEMBER = record(
    {"name": text(), "class_names": CLASS_NAMES, "paths": several(text())},
    thresholds=optional(_THRESHOLDS),
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
            unknown=optional(UNKNOWN),
        ),
        as_many_as_members,
    )


ENSEMBLE = _ensemble(MOST_NESTED)
HEAD = record({"kind": one_of("classifier", "ensemble")}, version=whole(0, 10**6))
