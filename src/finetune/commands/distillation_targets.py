"""What a teacher says of the training images, for ``fit --model.teacher CKPT``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import CheckpointMismatchError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.runtime import Runtime
    from finetune.training.features.store import FeatureStore


def teacher_probabilities(
    teacher: str | Path,
    datamodule: ImageFolderDataModule,
    store: FeatureStore | None = None,
    runtime: Runtime | None = None,
) -> Tensor:
    """The teacher's probabilities ``(N, C)`` for the training images, float32.

    Rows follow the training images, columns the data's class names. Each image is answered for
    once, as it is, without random views; with a store the answers are cached for later students.
    The teacher answers on the device of the runtime; of several processes each asks for a share.

    Raises:
        CheckpointMismatchError: the teacher knows other classes.
        UsageError: there is no such file.
    """
    from finetune.combining.members import align_classes
    from finetune.prediction import predict
    from finetune.prediction.predictor import load_model
    from finetune.spec.images import file_id
    from finetune.training.features.store import cached_or_computed

    path = Path(teacher)
    if not path.is_file():
        raise UsageError(f"Expected a checkpoint after --model.teacher, found nothing at {path}.")
    model = load_model(path)
    if model.task.name != datamodule.task_name:
        raise CheckpointMismatchError(
            f"Expected a teacher of the task {datamodule.task_name}, as the data have it, found "
            f"{model.task.name} in {path}; teach with a model of the same task."
        )
    order = align_classes(model.class_names, datamodule.class_names, source=str(path))
    images = datamodule.images("train")

    def compute(missing: list[int]) -> Iterator[np.ndarray]:
        wanted = [images[index].path for index in missing]
        answers = predict(
            model,
            wanted,
            max_pixels=datamodule.max_pixels,
            max_decoding_mb=datamodule.max_decoding_mb,
            trainer=None if runtime is None else runtime.trainer(),
        )
        yield answers.probabilities.float().cpu().numpy()

    keys = [image.id for image in images]
    kept = cached_or_computed(store, f"teacher-{file_id(path)}", keys, compute)
    return kept.tensor() if order is None else kept.tensor()[:, order]
