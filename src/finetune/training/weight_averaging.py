"""Averages of the weights during one fit: EMA with decay warm-up, and SWA.

Both are Lightning's :class:`WeightAveraging` with its traps closed, so that the averaged weights
are the ones validated, monitored, saved, reloaded, tested and resumed:

- a fixed decay of 0.999 leaves 88 % of the first weights in an average over 125 steps; here the
  decay warms up;
- before its first update an average is a copy of the untrained weights; here the trained ones
  count until then, and a fit too short for any update keeps them;
- a checkpoint loaded for testing after the fit got the raw weights back, or the last average
  swapped in; here the average ends with the fit;
- what is averaged after an epoch's validation was never judged; here SWA averages before it.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from finetune.errors import UsageError

Tensors = tuple[Tensor, ...] | list[Tensor]


class _Averaging(WeightAveraging):
    """What EMA and SWA share: the life of the average."""

    @property
    def updates(self) -> int:
        """How often the average was updated; 0 without one."""
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                raise UsageError(
                    f"Expected full checkpoints beside {type(self).__name__}, found "
                    "save_weights_only=True, which would keep the weights that were not "
                    "validated; leave it out."
                )
        # The same callback may serve several fits, and every trainer counts its steps from 0.
        self._latest_update_step, self._latest_update_epoch = 0, -1
        super().setup(trainer, pl_module, stage)
        assert self._average_model is not None
        # The count of updates stays here: asked for on a device, it would stop it at every step.
        self._average_model.n_averaged = torch.tensor(0)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._average_model = None

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.updates:
            super().on_validation_epoch_start(trainer, pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.updates:
            super().on_validation_epoch_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.updates:
            super().on_train_end(trainer, pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is None:
            return
        raw = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self.updates:
            checkpoint["state_dict"] = raw

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class EMA(_Averaging):
    """Exponential moving average, updated after every optimizer step.

    Args:
        decay: share of the old average that an update keeps, in [0, 1).
        warmup: let the decay rise as ``(1 + t) / (10 + t)`` with the number ``t`` of updates, so
            that it also helps fits of a hundred steps.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"Expected an EMA decay in [0, 1), found {decay}; try 0.999.")

        def average(averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
            count = self.updates
            kept = min(decay, (1 + count) / (10 + count)) if warmup else decay
            _move(averaged, current, 1 - kept)

        super().__init__(use_buffers=True, multi_avg_fn=average)


class SWA(_Averaging):
    """Equal average of the weights at the end of the later epochs (Izmailov et al. 2018).

    Args:
        start: share of the fit's epochs after which averaging begins, in [0, 1).
    """

    def __init__(self, start: float = 0.5) -> None:
        if not 0 <= start < 1:
            raise UsageError(f"Expected the start of SWA in [0, 1), found {start}; try 0.5.")
        self.start = start
        self._due = False

        def average(averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
            _move(averaged, current, 1 / (self.updates + 1))

        super().__init__(use_buffers=True, multi_avg_fn=average)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
        # At the last batch, not after the epoch: the validation in between judges the average.
        self._due = trainer.is_last_batch and trainer.current_epoch >= self.start * epochs
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and self._due


def _move(averaged: Tensors, current: Tensors, share: float) -> None:
    """Move tensors of one type towards ``current``; what stands still stays bit-identical."""
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, share)
    else:
        torch._foreach_copy_(averaged, current)
