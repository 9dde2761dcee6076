"""What a phase offers, as a value: weights with their answers, compared before they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.tasks.known import task_of
from finetune.tasks.task import Task
from finetune.training.checkpoints import ENTRY, read_content, write_checkpoint
from finetune.training.checksums import CHECKSUMS
from finetune.training.held_out_pass import Outputs
from finetune.training.temperature import rescaled, rescaled_nll

WINSORISED = 0.02  # of the gains at either end, and at least one


@dataclass(frozen=True, slots=True)
class Candidate:
    """A classifier that ``best.ckpt`` may hold.

    Attributes:
        state_dict: its tensors, on the CPU, in float32.
        hyper_parameters: plain constructor arguments.
        entry: what its checkpoint says beside them; ``fit`` tells from which phase it is, and what
            was done to it.
    """

    state_dict: Mapping[str, Tensor]
    hyper_parameters: Mapping[str, Any]
    entry: Mapping[str, Any]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Candidate:
        """A copy of what a checkpoint would hold, from tensors that will go on learning.

        In float32, also of weights that learn in half precision: phases can be compared so.
        """
        state_dict = {
            name: value.detach().to(
                "cpu",
                torch.float32 if value.is_floating_point() else value.dtype,
                copy=True,
                memory_format=torch.contiguous_format,
            )
            for name, value in content["state_dict"].items()
        }
        entry = content[ENTRY]
        return cls(
            state_dict,
            {name: v for name, v in content["hyper_parameters"].items() if name[0] != "_"},
            {**entry, "fit": dict(entry.get("fit", {}))},
        )

    @classmethod
    def read(cls, path: Path) -> Candidate:
        """The one that a file holds.

        Raises:
            CheckpointError: no file, or no checkpoint.
        """
        content = read_content(path)
        entry = {name: v for name, v in content[ENTRY].items() if name != CHECKSUMS}
        entry.setdefault("fit", {})
        return cls(content["state_dict"], content["hyper_parameters"], entry)

    def write(self, path: Path) -> None:
        """Write it as a checkpoint that needs nothing else."""
        write_checkpoint(
            path,
            state_dict=self.state_dict,
            hyper_parameters=self.hyper_parameters,
            entry=self.entry,
        )

    @property
    def task(self) -> Task:
        """What it predicts."""
        return task_of(self.entry, "a candidate")

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of which phase it is, and what was done to it."""
        facts: Mapping[str, Any] = self.entry["fit"]
        return facts

    @property
    def outputs(self) -> Outputs | None:
        """Logits ``(N, C)`` and labels ``(N,)`` of held-out images; None without any."""
        val = self.entry.get("val")
        return None if val is None or not len(val["labels"]) else (val["logits"], val["labels"])

    def figure(self, monitor: str) -> float | None:
        """A held-out figure such as ``val/nll``; None where nothing was held out."""
        if self.outputs is None:
            return None
        name = monitor.split("/")[-1]
        if name == "nll_rescaled" and self.task.has_choices:
            return rescaled_nll(*self.task.rows(*self.outputs))
        figures = self.task.val_figures(*self.outputs)
        return figures.get(name, figures[self.task.deciding])

    def but(
        self,
        state_dict: Mapping[str, Tensor] | None = None,
        logits: Tensor | None = None,
        /,
        **facts: Any,
    ) -> Candidate:
        """The same with other weights, other held-out logits, more facts about it."""
        entry = {**self.entry, "fit": {**self.facts, **facts}}
        if logits is not None:
            entry["val"] = {**entry["val"], "logits": logits}
        return replace(self, state_dict=state_dict or self.state_dict, entry=entry)

    def rescaled(self, head: Iterable[str]) -> Candidate:
        """With its confidence put right, where something was held out; see :func:`rescaled`."""
        if self.outputs is None:
            return self
        return self.but(*rescaled(self.task, self.state_dict, *self.outputs, head), rescaled=True)


def standing(task: Task, logits: Tensor, labels: Tensor, monitor: str) -> tuple[float, float]:
    """Where answers stand by a figure, the deciding one telling ties: the higher the better."""
    figures = task.val_figures(logits, labels)
    decides = figures[task.deciding]
    value = figures.get(monitor.split("/")[-1], decides)
    return (value if task.higher_is_better(monitor) else -value, -decides)


def clearly_better(later: Candidate, simpler: Candidate, monitor: str) -> bool:
    """Whether a later phase's candidate is to replace that of the simpler phase before it.

    Where the figure is an NLL, its gain has to exceed its standard error over the held-out
    images: with a few dozen of them a smaller one is chance, and the simpler classifier is the
    safer. Other figures are compared as they are, ties told by NLL. Where nothing was held out,
    the later phase is the better one.

    Source: the one-standard-error rule, Breiman et al., Classification and regression trees, 1984.
    """
    after, before = later.outputs, simpler.outputs
    if after is None or before is None:
        return True
    # Where a trainer limits its batches, one of them has answered the first images alone.
    both = min(len(after[1]), len(before[1]))
    after, before = ((logits[:both], labels[:both]) for logits, labels in (after, before))
    task = later.task
    if task.higher_is_better(monitor):
        return standing(task, *after, monitor) > standing(task, *before, monitor)
    return exceeds_its_error(task.losses(*before) - task.losses(*after))


def exceeds_its_error(gains: Tensor) -> bool:
    """Whether the winsorised mean of paired gains ``(N,)`` is more than its standard error.

    The largest and the smallest 2 %, at least one at either end, count as the next ones do, so a
    single image that is lost or won by tens of nats neither makes nor blocks a decision. Of three
    images or fewer none may lose.

    Source: Dixon and Tukey, Approximate behavior of the distribution of winsorized t, 1968.
    """
    count = len(gains)
    cut = max(1, math.floor(WINSORISED * count))
    inner = count - 2 * cut
    if inner < 2:
        return bool((gains >= 0).all() and gains.sum() > 0)
    ordered = gains.double().sort().values
    gains = ordered.clamp(float(ordered[cut]), float(ordered[-1 - cut]))
    error = gains.std() * (count - 1) / (inner - 1) / count**0.5
    return bool(gains.mean() > error)
