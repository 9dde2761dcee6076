"""What a classifier answers to held-out images in one pass, and how a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from finetune.runtime import Runtime
from finetune.spec.images import Split
from finetune.spec.protocols import NamedImages, PhaseData
from finetune.tasks.task import Task
from finetune.training.checkpoints import plain
from finetune.training.temperature import rescaled_nll

Stage = Literal["val", "test"]
Outputs = tuple[Tensor, Tensor]


class HeldOutPass:
    """Outputs and targets of one pass, batch by batch, whichever process has them."""

    def __init__(self) -> None:
        self.batches: list[Outputs] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """One batch of this process."""
        self.batches.append((outputs, targets))

    def conclude(self, module: LightningModule, stage: Stage) -> Outputs:
        """All of them in the order of the images, on the CPU."""
        outputs, targets = (torch.cat(parts) for parts in zip(*self.batches, strict=True))
        self.batches.clear()
        return _in_order(module, outputs, stage), _in_order(module, targets, stage)


def _in_order(module: LightningModule, answers: Tensor, stage: Stage) -> Tensor:
    """All processes' answers in the order of the images, which they have dealt out in turn."""
    if module.trainer.world_size == 1:
        return answers.cpu()
    gathered = torch.stack(Runtime().gather(answers.cpu()))  # (processes, N, ...)
    dealt = gathered.transpose(0, 1).flatten(0, 1)
    # The first ones are dealt again in the end, so that every process has as many.
    return dealt[: len(getattr(module.trainer, f"{stage}_dataloaders").dataset)]


def logged_figures(task: Task, answers: Outputs, stage: Stage) -> dict[str, float]:
    """Figures of a pass under their stage; of val also the NLL at the best temperature."""
    judged = task.val_figures if stage == "val" else task.figures
    figures = {f"{stage}/{name}": value for name, value in judged(*answers).items()}
    if stage == "val" and task.has_choices:
        figures["val/nll_rescaled"] = rescaled_nll(*task.rows(*answers))
    return figures


def fitted_on(data: PhaseData, val: Outputs | None) -> dict[str, Any]:
    """What a checkpoint says of the images of its fit, and of the answers to the ``val`` ones."""
    record = data.split_record
    entries: dict[str, Any] = {"data": plain(record.settings), "split": record.plain}
    if val is not None:
        # Fewer answers than images where the trainer limits its validation batches.
        entries["val"] = kept_answers(data, ("val",), val, range(len(val[1])))
    return entries


def kept_answers(
    data: NamedImages, sides: Sequence[Split], answers: Outputs, rows: Sequence[int]
) -> dict[str, Any]:
    """What a checkpoint keeps of the answers to these rows of some sides' images."""
    names = [name for side in sides for name in data.names(side)]
    ids = [image.id for side in sides for image in data.images(side)]
    paths, own = ([each[row] for row in rows] for each in (names, ids))
    return {"logits": answers[0], "labels": answers[1], "paths": paths, "ids": own}
