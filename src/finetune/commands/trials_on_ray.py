"""Backbones judged here, or as tasks of Ray, each round's at the same time.

A task whose node or process goes is begun again elsewhere; what it has kept of features is found in
the store where nodes share it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from finetune.combining.backbone_choice import Judge, Trial
from finetune.commands.backbone_trials import BackboneTrials, Limits, Named
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import FinetuneError
from finetune.prediction.on_ray import cluster, shares
from finetune.runtime import Runtime, use_fast_float32
from finetune.spec.choices import Engine
from finetune.training.features.store import FeatureStore

RETRIES = 3  # of a task whose node or process has gone; not of one that has failed


class _Asked(NamedTuple):
    """What a task is to judge, and how; it must begin before ``until``, in the clock's seconds."""

    candidate: Named
    images: int
    until: float
    limits: Limits
    store: FeatureStore
    seed: int
    accelerator: str
    start: str


class _Judged(NamedTuple):
    """What it hands back: the trial or why there is none, what it said, seconds an image."""

    trial: Trial | None
    left_out: str
    said: list[str]
    seconds: float = 0.0
    failure: FinetuneError | None = None


@contextmanager
def judging(
    trials: BackboneTrials,
    admitted: Mapping[str, Named],
    engine: Engine,
    address: str | None,
    accelerator: str,
) -> Iterator[Judge]:
    """Who judges the backbones of a round.

    Args:
        trials: of this process.
        admitted: the backbones, by name.
        engine: where.
        address: of a Ray cluster; None starts one on this machine, which ends with the work.
        accelerator: where networks compute on a node.

    Raises:
        UsageError: no cluster there.
    """
    if engine == "local" or not admitted:
        yield lambda names, size: [trials.judge(admitted[name], size) for name in names]
        return
    with cluster(address) as ray:
        on_cpu = accelerator == "cpu"
        number, of_each = shares("auto", ray.nodes(), blocks=len(admitted), on_cpu=on_cpu)
        trials.at_once = number
        task = ray.remote(max_retries=RETRIES, **of_each)(_judge_there)
        data = ray.put(trials.data)
        limits = replace(trials.limits, deadline=None)  # in seconds of this machine
        given = (limits, trials.store, trials.seed, accelerator, os.getcwd())

        def judge(names: Sequence[str], size: int) -> list[Trial | None]:
            over = time.time() + trials.limits.seconds_left
            asked: list[Any] = []
            for name in names:
                # One at least is judged, and whatever has been before.
                until = over if asked and name not in trials.seconds else math.inf
                asked.append(task.remote(data, _Asked(admitted[name], size, until, *given)))
            return [
                _taken(trials, name, ray, each) for name, each in zip(names, asked, strict=True)
            ]

        yield judge


def _judge_there(data: ImageFolderDataModule, asked: _Asked) -> _Judged:
    name = asked.candidate.name
    if time.time() > asked.until:
        return _left_out(name, "the budget was over")
    with suppress(OSError):  # another machine may not have it; then paths are absolute
        os.chdir(asked.start)
    said: list[str] = []
    try:
        runtime = Runtime.chosen(asked.accelerator)
        use_fast_float32(runtime.device)
        trials = BackboneTrials(
            data, runtime, asked.store, asked.limits, seed=asked.seed, say=said.append
        )
        trial = trials.judge(asked.candidate, asked.images)
    except FinetuneError as error:
        return _Judged(None, "", said, failure=error)
    return _Judged(trial, trials.left_out.get(name, ""), said, trials.seconds.get(name, 0.0))


def _taken(trials: BackboneTrials, name: str, ray: Any, promised: Any) -> Trial | None:
    """A task's trial; what it said is said here."""
    try:
        judged: _Judged = ray.get(promised)
    except ray.exceptions.RayError as error:
        judged = _left_out(name, " ".join(str(error).split())[:300])
    for line in judged.said:
        trials.say(line)
    if judged.failure is not None:
        raise judged.failure
    trials.seconds[name] = judged.seconds
    if judged.trial is None:
        trials.left_out[name] = judged.left_out
    return judged.trial


def _left_out(name: str, reason: str) -> _Judged:
    return _Judged(None, reason, [f"{name} is left out: {reason}"])
