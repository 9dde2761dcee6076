"""One line an epoch, for logs and pipes where a progress bar would garble."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class EpochLine(Callback):
    """Print an epoch's loss and validation figures in one line, on the first process only."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
    ("val nll", "val/nll", 3),
)


def _epochs(trainer: Trainer) -> Any:
    return trainer.max_epochs if trainer.max_epochs not in (None, -1) else "?"
