"""What averaging gives: a classifier as a value, before it is a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.combining.soup_evaluation import Score
from finetune.training.checkpoints import ENTRY, as_checkpoint, write_checkpoint
from finetune.training.classifier import ImageClassifier


@dataclass(frozen=True)
class Soup:
    """An averaged checkpoint, not yet written.

    Attributes:
        state_dict, hyper_parameters, entry: what a checkpoint holds.
        coefficients: of each given checkpoint, in their order; they sum to 1.
        batchnorm: ``average`` or ``update``: where the running statistics came from.
        score: of the soup on the picking images; None without a datamodule.
        member_scores: of each given checkpoint alone.
        curve: ``(coefficient, score)`` along an interpolation.
    """

    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    entry: dict[str, Any]
    coefficients: tuple[float, ...]
    batchnorm: str = "average"
    score: Score | None = None
    member_scores: tuple[Score, ...] = ()
    curve: tuple[tuple[float, Score], ...] = field(default=())

    def classifier(self) -> ImageClassifier:
        """The network itself, in ``eval`` mode."""
        content = {
            "state_dict": self.state_dict,
            "hyper_parameters": self.hyper_parameters,
            ENTRY: self.entry,
        }
        return ImageClassifier.rebuilt(as_checkpoint(content, "the average"))

    def save(self, path: str | Path) -> None:
        """Write a checkpoint like that of a fit; it appears when it is complete."""
        write_checkpoint(
            path,
            state_dict=self.state_dict,
            hyper_parameters=self.hyper_parameters,
            entry=self.entry,
        )
