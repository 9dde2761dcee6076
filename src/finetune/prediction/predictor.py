"""Open whatever kind of checkpoint there is, ready to answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning import Trainer

from finetune.combining.ensemble import Ensemble
from finetune.combining.ensemble_file import checkpoint_file
from finetune.data.decoding import MAX_PIXELS
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.errors import UsageError
from finetune.prediction.inference import predict
from finetune.prediction.inputs import ImageInput
from finetune.prediction.predictions import Predictions
from finetune.runtime import Runtime
from finetune.spec.choices import OnBadImage
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoints import ENTRY, read_content
from finetune.training.classifier import ImageClassifier


@dataclass(frozen=True)
class Predictor:
    """A classifier, an average or an ensemble of a file, ready to name the class of images.

    Attributes:
        model: what answers, in ``eval`` mode.

    Examples:
        >>> predictor = finetune.Run("runs/pets-1").predictor()
        >>> answers = predictor(["pets/cat/00.png", "pets/dog/0*.png"], batch_size=64)
        >>> len(answers)
        11
    """

    model: ImageClassifier | Ensemble

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the columns of every answer."""
        return tuple(self.model.class_names)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """How the members see an image, each way once."""
        return Ensemble.of(self.model).preprocessings

    @property
    def preprocessing(self) -> Preprocessing:
        """How all members see an image.

        Raises:
            UsageError: they see it in several ways.
        """
        if len(self.preprocessings) != 1:
            raise UsageError(
                f"Expected members that see an image in one way, found {len(self.preprocessings)} "
                "ways; read `preprocessings`."
            )
        return self.preprocessings[0]

    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int = 32,
        test_time_augmentation: int | Sequence[str] = 1,
        num_workers: int | None = None,
        on_bad_image: OnBadImage = "error",
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
        trainer: Trainer | None = None,
    ) -> Predictions:
        """Answer for files, folders or glob patterns; see :func:`finetune.predict`."""
        return predict(
            self.model,
            images,
            batch_size=batch_size,
            test_time_augmentation=test_time_augmentation,
            num_workers=num_workers,
            on_bad_image=on_bad_image,
            max_pixels=max_pixels,
            max_decoding_mb=max_decoding_mb,
            trainer=trainer,
        )


def load(path: str | Path) -> Predictor:
    """Open a run folder, or the file of a classifier, an average or an ensemble.

    Nothing but the file is needed, and nothing in it is run.

    Args:
        path: of the file; of a run folder the best checkpoint is taken.

    Raises:
        CheckpointError: there is no checkpoint of ours.

    Examples:
        >>> predictor = finetune.load("runs/pets-1")
        >>> predictor.class_names, predictor.preprocessing.image_size
        (('cat', 'dog'), 32)
    """
    return Predictor(load_model(path))


def load_model(path: str | Path, runtime: Runtime | None = None) -> ImageClassifier | Ensemble:
    """The classifier or ensemble itself, in ``eval`` mode; see :func:`load`.

    Args:
        path: as for :func:`load`.
        runtime: where it is to answer; by default on the CPU, from where a Trainer moves it.
    """
    path = checkpoint_file(path)
    place = (runtime or Runtime()).place
    if read_content(path, mmap=True)[ENTRY]["kind"] == "ensemble":
        return place(Ensemble.from_file(path))
    return place(ImageClassifier.from_checkpoint(path))


def fits_of(model: ImageClassifier | Ensemble) -> tuple[SplitRecord, ...]:
    """How the fits behind a classifier or an ensemble split their images, as far as known."""
    return Ensemble.of(model).fitted_on
