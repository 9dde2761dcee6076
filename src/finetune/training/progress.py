"""Lines about a Trainer's work, for logs and pipes where a progress bar would garble."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from finetune.long_steps import told_steps


class EpochLine(Callback):
    """Print an epoch's loss and validation figures in one line, on the first process only.

    Within an epoch that takes long, such as the first, which decodes, a line now and then.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._told = ExitStack()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        what = f"Epoch {trainer.current_epoch + 1}"
        steps = told_steps(what, trainer.num_training_batches, bar=False)
        self._advance = self._told.enter_context(steps)

    @override
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told.close()
        if not trainer.is_global_zero:
            return
        figures = trainer.callback_metrics
        parts = [
            f"{label} {float(figures[name]):.{digits}f}"
            for label, name, digits in _COLUMNS
            if name in figures
        ]
        seconds = time.monotonic() - self._start
        epoch = f"epoch {trainer.current_epoch + 1}/{_epochs(trainer)}"
        print("  ".join([epoch, *parts, f"{seconds:.1f} s"]), flush=True)


_COLUMNS = (
    ("train loss", "train/loss", 3),
    ("val accuracy", "val/accuracy", 3),
    ("val mAP", "val/map", 3),
    ("val nll", "val/nll", 3),
    ("val mae", "val/mae", 3),
    ("val r2", "val/r2", 3),
)


def _epochs(trainer: Trainer) -> Any:
    return trainer.max_epochs if trainer.max_epochs not in (None, -1) else "?"


class PassLine(Callback):
    """A line now and then of a pass over held-out images or images to be answered."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told = ExitStack()

    def _begin(self, batches: list[int | float]) -> None:
        self._advance = self._told.enter_context(told_steps(self._what, sum(batches), bar=False))

    def _step(self, *_: Any, **__: Any) -> None:
        self._advance()

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told.close()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _step
    on_validation_end = on_test_end = on_predict_end = _end

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.num_val_batches)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.num_test_batches)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer.num_predict_batches)
