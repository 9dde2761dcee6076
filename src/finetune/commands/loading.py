"""Open whatever kind of checkpoint a verb was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


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


def fits_of(answerer: Any) -> tuple[Mapping[str, Any], ...]:
    """The data settings of the fits behind what :func:`load_answerer` gave, as far as known."""
    from finetune.training.classifier import ImageClassifier

    if isinstance(answerer, ImageClassifier):
        return (answerer.details.get("data") or {},)
    return tuple(answerer.fitted_on)
