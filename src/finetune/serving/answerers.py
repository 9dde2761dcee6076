"""What answers a batch: networks of a checkpoint, or an export without any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.combining.test_time_augmentation import original
from finetune.exporting.onnx_model import OnnxModel
from finetune.prediction.answering import as_predictions, outputs_of, predictions_of
from finetune.prediction.predictions import Predictions
from finetune.runtime import device_of
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.task import Task
from finetune.training.classifier import ImageClassifier

Model = ImageClassifier | Ensemble | OnnxModel


class Answerer(Protocol):
    """Answers batches of views.

    Attributes:
        cannot: what the page of a checkpoint may show and this cannot, in words.
    """

    cannot: ClassVar[tuple[str, ...]]

    @property
    def task(self) -> Task:
        """What is predicted."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the answers' columns."""

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The views of an image that it takes, in their order."""

    @property
    def knows_unknown(self) -> bool:
        """Whether it tells what it has never seen."""

    def answer(self, views: Sequence[Tensor], paths: Sequence[Path]) -> Predictions:
        """For B images ``uint8 (B, C_i, S_i, S_i)`` a view, on the CPU."""


class NetworkAnswerer:
    """The networks of a checkpoint, where they are."""

    cannot: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: ImageClassifier | Ensemble) -> None:
        self.ensemble = Ensemble.of(model).eval()
        self.device = device_of(model)
        self.task, self.class_names = self.ensemble.task, self.ensemble.class_names
        self.preprocessings = self.ensemble.preprocessings
        self.knows_unknown = self.ensemble.unknown is not None

    def answer(self, views: Sequence[Tensor], paths: Sequence[Path]) -> Predictions:
        """As ``finetune predict`` answers."""
        there = [view.to(self.device) for view in views]
        outputs, strangeness = outputs_of(self.ensemble, there, paths, [original])
        return predictions_of(self.ensemble, (outputs.cpu(), strangeness), paths)


class ExportAnswerer:
    """An ONNX file."""

    cannot: ClassVar[tuple[str, ...]] = (
        "show where it looked",
        "show training images that are alike",
        "tell images of no class that it has learnt",
        "say whether its members agree",
    )

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.task, self.class_names = model.task, model.class_names
        self.preprocessings = model.preprocessings
        self.knows_unknown = False

    def answer(self, views: Sequence[Tensor], paths: Sequence[Path]) -> Predictions:
        """The same as the checkpoint's, within what an export may differ."""
        return as_predictions(self.model.answer(views), self.task, self.class_names, paths)


def answerer_of(model: Model) -> Answerer:
    """What has a model answer."""
    return ExportAnswerer(model) if isinstance(model, OnnxModel) else NetworkAnswerer(model)
