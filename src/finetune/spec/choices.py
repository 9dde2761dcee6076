"""What can be chosen by name: one list each, for functions, commands and what they call."""

from __future__ import annotations

from typing import Literal

Averaging = Literal["uniform", "weighted", "greedy", "interpolate"]
BatchNormOfAverage = Literal["auto", "average", "update"]
Metric = Literal["nll", "accuracy", "brier"]
Pooling = Literal["mean", "geometric", "vote"]
Selecting = Literal["all", "greedy", "learned"]
Scaling = Literal["common", "label"]
SetScore = Literal["thr", "aps", "raps"]
Share = Literal["half", "all"]
TaskName = Literal["multiclass", "multilabel", "regression"]
TaskOfData = Literal[
    "auto", "multiclass", "multilabel", "regression"
]  # auto: as the manifest has it
Strangeness = Literal["mahalanobis", "neighbours", "doubt"]
Engine = Literal["local", "ray"]
OnBadImage = Literal["error", "skip"]
Precision = Literal[
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "16-true",
    "bf16-true",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
    "16",
    "bf16",
    "32",
    "64",
]
