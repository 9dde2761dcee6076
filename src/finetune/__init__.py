"""Fine-tune image classifiers on small folders of pictures, and combine the fine-tuned models.

The public names are imported when they are first used, so that ``import finetune`` and the
``finetune`` command start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.data.datamodule import ImageFolderDataModule as ImageFolderDataModule
    from finetune.errors import FinetuneError as FinetuneError
    from finetune.prediction import Predictions as Predictions
    from finetune.prediction import predict as predict
    from finetune.preprocessing import Preprocessing as Preprocessing
    from finetune.training.classifier import ImageClassifier as ImageClassifier

_HOMES = {
    "FinetuneError": "finetune.errors",
    "ImageClassifier": "finetune.training.classifier",
    "ImageFolderDataModule": "finetune.data.datamodule",
    "Predictions": "finetune.prediction",
    "Preprocessing": "finetune.preprocessing",
    "predict": "finetune.prediction",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
