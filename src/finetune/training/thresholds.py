"""From which probability on a label is named, where an image has several: chosen, never fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.tasks.task import Task

Thresholds = tuple[float, ...]


def thresholds_of(task: Task, details: Mapping[str, Any]) -> Thresholds | None:
    """Those of a checkpoint, ``(K,)``: as noted, or by its answers to held-out images.

    None: the task has none, or nothing was held out.
    """
    noted, val = details.get("thresholds"), details.get("val")
    if noted is not None:
        return tuple(noted)
    if val is None or not len(val["labels"]):
        return None
    chosen = task.thresholds(val["logits"], val["labels"])
    return None if chosen is None else tuple(chosen)


def mean_thresholds(
    each: Sequence[Thresholds | None], coefficients: Sequence[float]
) -> Thresholds | None:
    """Those of several classifiers that answer as one, by the mean of their logits.

    None: one of them has none.
    """
    known = [thresholds for thresholds in each if thresholds is not None]
    if len(known) < len(each):
        return None
    if len(known) == 1:  # bit for bit
        return known[0]
    logits = [[math.log(value / (1 - value)) for value in thresholds] for thresholds in known]
    means = [
        sum(share * logit for share, logit in zip(coefficients, column, strict=True))
        for column in zip(*logits, strict=True)
    ]
    return tuple(1 / (1 + math.exp(-mean)) for mean in means)


def in_order(
    thresholds: Thresholds | None, names: Sequence[str], wanted: Sequence[str]
) -> Thresholds | None:
    """Those of ``names`` in another order of the same names; None stays None."""
    if thresholds is None:
        return None
    by_name = dict(zip(names, thresholds, strict=True))
    return tuple(by_name[name] for name in wanted)
