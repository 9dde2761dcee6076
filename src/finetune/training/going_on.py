"""Where in its phases a checkpoint was written, and so where a fit goes on from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.errors import TrainingError
from finetune.training.checkpoints import read_checkpoint, read_content


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fit goes on.

    Attributes:
        phase: the first one that is not finished, from 0.
        checkpoint: one inside of that phase; None where the phase begins.
        shortened: how many epochs that phase had been given, ``"from"``, and how many a time limit
            has left it, ``"to"``; its learning rate falls over these.
    """

    phase: int = 0
    checkpoint: Path | None = None
    shortened: dict[str, int] | None = None

    def within(self, phase: int) -> Place:
        """The place in that phase, which is its beginning unless the fit goes on inside of it."""
        return self if phase == self.phase else Place(phase)


START = Place()


def place_of(path: Path, strategy: str) -> Place:
    """Where a fit by this strategy goes on from a checkpoint.

    Raises:
        TrainingError: the checkpoint is of another strategy, or holds weights alone.
    """
    progress = read_checkpoint(path).details.get("fit", {})
    if progress.get("strategy") != strategy or "phase" not in progress:
        raise TrainingError(
            f"Expected a checkpoint of a fit by {strategy}, found one by "
            f"{progress.get('strategy', 'other means')} in {path}; give its own settings."
        )
    phase = int(progress["phase"])
    if progress.get("done"):
        return Place(phase + 1)
    if "optimizer_states" not in read_content(path, mmap=True):
        raise TrainingError(
            f"Expected a checkpoint to go on from, found weights alone in {path}; give "
            "last.ckpt, or start from these with --model.pretrained."
        )
    return Place(phase, path, progress.get("shortened"))
