"""Several classifiers out of one fit: the weights at the end of each cycle of the learning rate.

Source: Huang et al., Snapshot ensembles: train 1, get M for free, 2017.
"""

from __future__ import annotations

import math
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


def whole_cycles(epochs: int, snapshots: int) -> int:
    """As many epochs or a few more, so that every cycle has the same whole number of them."""
    return snapshots * math.ceil(epochs / snapshots)


class Snapshots(Callback):
    """Writes ``snapshot1.ckpt``, ``snapshot2.ckpt``, ... when the learning rate has fallen to 0.

    Args:
        folder: of the checkpoints.
        epochs: of one cycle.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.epochs = epochs

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.epochs == 0:
            trainer.save_checkpoint(self.folder / f"snapshot{epoch // self.epochs}.ckpt")
