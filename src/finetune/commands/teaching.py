"""What a teacher says of the training pictures, for ``fit --model.teacher CKPT``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import CheckpointMismatchError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.training.feature_store import FeatureStore


def teacher_probabilities(
    teacher: str | Path, datamodule: ImageFolderDataModule, store: FeatureStore | None = None
) -> Tensor:
    """The teacher's probabilities ``(N, C)`` for the training pictures, float32.

    Rows follow the training pictures, columns the data's class names. Each picture is answered for
    once, as it is, without random views; with a store the answers are kept for later students.

    Raises:
        CheckpointMismatchError: the teacher knows other classes.
        UsageError: there is no such file.
    """
    from finetune.prediction import predict
    from finetune.prediction.loading import load_answerer
    from finetune.spec.images import file_id
    from finetune.training.feature_store import kept_or_computed

    path = Path(teacher)
    if not path.is_file():
        raise UsageError(f"Expected a checkpoint after --model.teacher, found nothing at {path}.")
    answerer = load_answerer(path)
    columns = _columns(answerer.class_names, datamodule.class_names, path)
    images = datamodule.images("train")

    def compute(missing: list[int]) -> Iterator[np.ndarray]:
        wanted = [images[index].path for index in missing]
        answers = predict(answerer, wanted, max_pixels=datamodule.max_pixels)
        yield answers.probabilities.float().cpu().numpy()

    keys = [image.id for image in images]
    kept = kept_or_computed(store, f"teacher-{file_id(path)}", keys, compute)
    return kept.tensor()[:, columns]


def _columns(teacher: tuple[str, ...], student: tuple[str, ...], path: Path) -> list[int]:
    """Where the teacher has the student's classes, by name."""
    if set(teacher) != set(student):
        differing = sorted(set(teacher) ^ set(student))
        raise CheckpointMismatchError(
            f"Expected a teacher of the classes of the data, found in {path} others: "
            f"{', '.join(differing[:5])}; teach with a model of the same classes."
        )
    return [teacher.index(name) for name in student]
