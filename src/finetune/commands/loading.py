"""Open whatever kind of checkpoint a verb was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.spec.splits import SplitRecord


def load_answerer(path: str | Path) -> Any:
    """A classifier or an ensemble in ``eval`` mode, ready for :func:`finetune.predict`.

    Raises:
        CheckpointError: the file is no checkpoint of ours.
    """
    from finetune.combining.ensemble import Ensemble
    from finetune.training.checkpoints import ENTRY, read_content
    from finetune.training.classifier import ImageClassifier

    if read_content(path, mmap=True)[ENTRY]["kind"] == "ensemble":
        return Ensemble.from_file(path)
    return ImageClassifier.from_checkpoint(path)


def fits_of(answerer: Any) -> tuple[SplitRecord, ...]:
    """How the fits behind what :func:`load_answerer` gave split their images, as far as known."""
    from finetune.training.classifier import ImageClassifier
    from finetune.training.fitted_splits import split_records

    if isinstance(answerer, ImageClassifier):
        return split_records(answerer.details)
    return tuple(answerer.fitted_on)
