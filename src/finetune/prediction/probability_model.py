"""What can answer with probabilities: an ensemble, or a classifier as an ensemble of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from finetune.combining.calibrated_answer import Answer, Calibration, decide
from finetune.combining.unknown import UnknownRule
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.task import Task
from finetune.training.classifier import ImageClassifier
from finetune.training.thresholds import thresholds_of

Views = Mapping[Preprocessing, Tensor]


class ProbabilityModel(Protocol):
    """What answers with probabilities: an ensemble, or a classifier as an ensemble of one."""

    class_names: tuple[str, ...]
    task: Task

    @property
    def unknown(self) -> UnknownRule | None:
        """Which images to call unknown, where that was calibrated."""

    @property
    def first_classifier(self) -> ImageClassifier | None:
        """By whose features."""

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The different views of an image that the members need, each once."""

    def member_logits(self, views: Views, paths: Sequence[str] | None = None) -> Tensor:
        """``(M, B, C)`` from one batch ``(B, C, S, S)`` in ``[0, 1]`` for each view."""

    def eval(self) -> Self:
        """Itself, answering as it was trained to."""

    def answer(self, member_logits: Tensor) -> Answer:
        """``(M, B, C)`` into probabilities ``(B, C)``, and how sure they are."""


class SingleClassifier(torch.nn.Module):
    """A classifier as an ensemble of one."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.unknown = UnknownRule.from_entry(classifier.details.get("unknown"))
        self.class_names = classifier.class_names
        self.task = classifier.task

    @property
    def first_classifier(self) -> ImageClassifier:
        """The only one."""
        return self.classifier

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The classifier's own."""
        return (self.classifier.preprocessing,)

    def member_logits(self, views: Views, paths: Sequence[str] | None = None) -> Tensor:
        """``(1, B, C)``."""
        logits: Tensor = self.classifier(views[self.classifier.preprocessing])
        return logits.float().unsqueeze(0)

    def answer(self, member_logits: Tensor) -> Answer:
        """The one member's answer, calibrated if its checkpoint is."""
        kept = self.classifier.details.get("calibration")
        calibration = Calibration.from_dict(kept) if kept else None
        thresholds = thresholds_of(self.task, self.classifier.details)
        return decide(
            self.task, member_logits[0], member_logits, calibration, thresholds=thresholds
        )
