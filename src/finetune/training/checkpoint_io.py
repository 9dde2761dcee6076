"""How Lightning's trainers write and read checkpoints here: whole, beside the target, checked."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from finetune.training.checkpoints import read_content, save_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes on the disk of the run, beside the target, and renames.

    Lightning's own writes into ``TMPDIR`` and copies, so a kill or a full disk leaves a part of the
    file under its good name where the two are different file systems.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        save_atomically(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_content(path)


def use_atomic_checkpoints(trainer: Trainer) -> Trainer:
    """The trainer, writing so unless its strategy or its maker has a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer
