"""Open whatever kind of checkpoint a verb was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.runtime import Runtime
    from finetune.spec.splits import SplitRecord


def load_answerer(path: str | Path, runtime: Runtime | None = None) -> Any:
    """A classifier or an ensemble in ``eval`` mode, ready for :func:`finetune.predict`.

    Args:
        path: of the checkpoint.
        runtime: where it is to answer; by default on the CPU, from where a Trainer moves it.

    Raises:
        CheckpointError: the file is no checkpoint of ours.
    """
    from finetune.combining.ensemble import Ensemble
    from finetune.runtime import Runtime
    from finetune.training.checkpoints import ENTRY, read_content
    from finetune.training.classifier import ImageClassifier

    is_ensemble = read_content(path, mmap=True)[ENTRY]["kind"] == "ensemble"
    answerer = Ensemble.from_file(path) if is_ensemble else ImageClassifier.from_checkpoint(path)
    return (runtime or Runtime()).place(answerer)


def fits_of(answerer: Any) -> tuple[SplitRecord, ...]:
    """How the fits behind what :func:`load_answerer` gave split their images, as far as known."""
    from finetune.training.classifier import ImageClassifier
    from finetune.training.fitted_splits import split_records

    if isinstance(answerer, ImageClassifier):
        return split_records(answerer.details)
    return tuple(answerer.fitted_on)
