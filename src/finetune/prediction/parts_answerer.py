"""Who answers blocks of images into parts: a network on its device, beside a folder to write to."""

from __future__ import annotations

from pathlib import Path

from finetune.prediction.parts import Done, write_part
from finetune.prediction.predictor import load_model
from finetune.prediction.streaming import StreamPredictor
from finetune.runtime import Runtime
from finetune.spec.answer_settings import AnswerSettings
from finetune.spec.protocols import ImageBlock


class PartsAnswerer:
    """Answers one block after the other.

    Args:
        checkpoint: a classifier, an average or an ensemble.
        folder: of the parts.
        settings: how images are answered.
        runtime: where.
    """

    def __init__(
        self, checkpoint: Path, folder: str, settings: AnswerSettings, runtime: Runtime
    ) -> None:
        self._predictor = StreamPredictor(load_model(checkpoint), settings, runtime)
        self._folder = folder

    def __call__(self, number: int, block: ImageBlock) -> Done:
        """Write the part of the block with this number.

        Raises:
            ImageError, DataError: as :class:`StreamPredictor`. OutputError: it cannot be written.
        """
        top_k = self._predictor.settings.top_k
        class_names = self._predictor.model.class_names
        answers = self._predictor(block)
        return write_part(self._folder, number, block, answers, class_names, top_k=top_k)
