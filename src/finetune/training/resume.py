"""Where in its phases a checkpoint was written, and so where a fit goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import TrainingError
from finetune.training.checkpoints import ENTRY, read_content


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a fit goes on.

    Attributes:
        phase: the first one that is not finished, from 0.
        checkpoint: one inside of that phase; None where the phase begins.
        epochs: of that phase that are over.
        stopped: whether it was to have no more, and only its end is missing.
        shortened: how many epochs that phase had been given, ``"from"``, and how many a time limit
            has left it, ``"to"``; its learning rate falls over these.
    """

    phase: int = 0
    checkpoint: Path | None = None
    epochs: int = 0
    stopped: bool = False
    shortened: Mapping[str, int] | None = None

    def within(self, phase: int) -> ResumePoint:
        """The place in that phase, which is its beginning unless the fit goes on inside of it."""
        return self if phase == self.phase else ResumePoint(phase)


START = ResumePoint()


def resume_point_of(
    path: Path, content: Mapping[str, Any], *, strategy: str, monitor: str, folder: Path
) -> ResumePoint:
    """Where a fit goes on from a checkpoint.

    Args:
        path: of the checkpoint.
        content: what was read of it.
        strategy, monitor: those of the fit that goes on.
        folder: with the other checkpoints of the fit, which tell whether the phase has ended.

    Raises:
        TrainingError: the checkpoint is of another strategy, was judged by another figure, or holds
            weights alone.
    """
    facts = content[ENTRY].get("fit", {})
    if facts.get("strategy") != strategy or "phase" not in facts:
        raise TrainingError(
            f"Expected a checkpoint of a fit by {strategy}, found one by "
            f"{facts.get('strategy', 'other means')} in {path}; give its own settings."
        )
    if facts.get("monitor", monitor) != monitor:
        raise TrainingError(
            f"Expected a fit whose best epoch is picked by {monitor}, found {facts['monitor']} in "
            f"{path}; give its own --monitor, or start a new fit with --model.pretrained {path}."
        )
    phase = int(facts["phase"])
    if facts.get("done") or has_ended(folder, phase):
        return ResumePoint(phase + 1)
    if "optimizer_states" not in content:
        raise TrainingError(
            f"Expected a checkpoint to resume from, found weights alone in {path}; give "
            "last.ckpt, or start from these with --model.pretrained."
        )
    return ResumePoint(
        phase, path, int(content["epoch"]) + 1, bool(facts.get("stopped")), facts.get("shortened")
    )


def phase_file(folder: Path, phase: int) -> Path:
    """Where the best epoch of a phase lies while it runs, and stays if it is not the best."""
    return folder / ("best.ckpt" if phase == 0 else f"phase{phase + 1}.ckpt")


def has_ended(folder: Path, phase: int) -> bool:
    """Whether what a phase has found was put right, compared and written for good."""
    for path in {folder / "best.ckpt", phase_file(folder, phase)}:
        if path.is_file():
            facts = read_content(path, mmap=True)[ENTRY].get("fit", {})
            if facts.get("phase") == phase and facts.get("done"):
                return True
    return False
