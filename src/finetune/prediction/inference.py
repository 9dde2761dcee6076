"""The run of a network, or of several, over images."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.combining.ensemble import Ensemble
from finetune.combining.test_time_augmentation import View, chosen_views
from finetune.data.decoding import MAX_PIXELS
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.workers import choose_num_workers
from finetune.errors import ImageError, UsageError
from finetune.prediction.answering import outputs_of, predictions_of
from finetune.prediction.inputs import (
    Collated,
    ImageInput,
    ImageViews,
    collate_views,
    named_images,
    stopped_by,
)
from finetune.prediction.predictions import Predictions
from finetune.runtime import Runtime, can_pin_memory
from finetune.spec.choices import OnBadImage
from finetune.training.classifier import ImageClassifier


def predict(
    classifier: ImageClassifier | Ensemble,
    images: ImageInput | Iterable[ImageInput],
    *,
    batch_size: int = 32,
    test_time_augmentation: int | Sequence[str] = 1,
    num_workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    max_pixels: int = MAX_PIXELS,
    max_decoding_mb: int = MAX_DECODING_MB,
    trainer: Trainer | None = None,
    on_answer: Callable[[Path, Predictions], None] | None = None,
) -> Predictions:
    """Answer for images: files, folders and glob patterns, or what a program holds already.

    Each image is decoded once and transformed once for each preprocessing that a member needs.
    All of it happens in this process, on one device, unless a trainer says otherwise.

    Args:
        classifier: a fine-tuned classifier, or an ensemble.
        images: one or several of files, folders (all images below) and glob patterns; a file's
            bytes, Pillow images, arrays and tensors, see :func:`finetune.data.in_memory.content_of`
            (``paths`` then names them ``image 0`` and so on).
        batch_size: images a batch; the answers do not depend on it beyond rounding.
        test_time_augmentation: views of each image whose probabilities are averaged: how many,
            or their names (:data:`finetune.combining.test_time_augmentation.VIEWS`).
        num_workers: processes that decode; by default chosen from cores and data size.
        on_bad_image: "error" refuses an image that cannot be read, "skip" leaves it out and lists
            it in ``skipped``.
        max_pixels: most pixels of an image; more is refused as a decompression bomb.
        max_decoding_mb: most memory that decoding an image may take, in MiB.
        trainer: a Lightning trainer with devices and precision of your own.
        on_answer: called with its path and its answer alone as each image is answered.

    Raises:
        DataError: no images. ImageError: one that cannot be read, with ``on_bad_image="error"``.
        UsageError: another kind of argument.

    Examples:
        >>> best = finetune.Run("runs/pets-1").best
        >>> classifier = finetune.ImageClassifier.from_checkpoint(best)
        >>> answers = finetune.predict(classifier, "new")
        >>> answers.probabilities.shape  # images, classes
        torch.Size([3, 2])
    """
    _check_arguments(classifier, batch_size, on_bad_image)
    model = Ensemble.of(classifier)
    views = chosen_views(test_time_augmentation)
    named = named_images(images)
    paths = [path for path, _ in named]
    workers = choose_num_workers(paths, num_workers)
    loader = DataLoader(
        ImageViews(named, model.preprocessings, max_pixels, max_decoding_mb),
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=can_pin_memory(),
        collate_fn=collate_views,
    )
    collected = _Collector(paths, model, on_answer, on_bad_image)
    answering = _Answering(model, views)
    if trainer is None:
        with _lightning_quiet():
            trainer = _plain_trainer(collected)
            trainer.predict(answering, loader, return_predictions=False)
        return collected.predictions()
    trainer.callbacks.append(collected)  # type: ignore[attr-defined]
    try:
        trainer.predict(answering, loader, return_predictions=False)
    finally:
        trainer.callbacks.remove(collected)  # type: ignore[attr-defined]
    return collected.predictions()


def _check_arguments(classifier: object, batch_size: int, on_bad_image: str) -> None:
    if not isinstance(classifier, torch.nn.Module):
        raise UsageError(
            f"Expected a classifier or an ensemble, found {type(classifier).__name__}; open a file "
            "with ImageClassifier.from_checkpoint or Ensemble.from_file."
        )
    if batch_size < 1:
        raise UsageError(f"Expected batch_size of at least 1, found {batch_size}.")
    if on_bad_image not in get_args(OnBadImage):
        raise UsageError(
            f"Expected on_bad_image to be one of {', '.join(get_args(OnBadImage))}, found "
            f"{on_bad_image!r}."
        )


class _Answering(LightningModule):
    """Lets Lightning's trainer place members and batches on devices."""

    def __init__(self, model: Ensemble, views: Sequence[View]) -> None:
        super().__init__()
        self.model = model.eval()
        self.views = views

    def predict_step(self, batch: Collated, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Outputs ``(M, B, C)``, and strangeness ``(B,)`` where there is a rule, else empty."""
        indexes, views, _ = batch
        if not indexes:
            return torch.empty(0), torch.empty(0)
        dataset = self.trainer.predict_dataloaders.dataset  # type: ignore[union-attr]
        paths = [dataset.paths[index] for index in indexes]
        return outputs_of(self.model, views, paths, self.views)


class _Collector(Callback):
    """Keeps the members' answers by the image's index, whichever process gave them."""

    def __init__(
        self,
        paths: Sequence[Path],
        model: Ensemble,
        on_answer: Callable[[Path, Predictions], None] | None,
        on_bad_image: OnBadImage,
    ) -> None:
        self.paths = paths
        self.model = model
        self.on_answer = on_answer
        self.on_bad_image = on_bad_image
        self.answers: dict[int, tuple[Tensor, Tensor]] = {}
        self.bad: dict[int, str] = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Collated,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        indexes, _, bad = batch
        if bad and self.on_bad_image == "error":
            raise stopped_by(bad[0][1])
        self.bad.update(bad)
        if not indexes:
            return
        members, strangeness = outputs[0].cpu(), outputs[1]
        for position, index in enumerate(indexes):
            own = slice(position, position + 1)
            self.answers[index] = members[:, own], strangeness[own]
            if self.on_answer is not None:
                self.on_answer(self.paths[index], self._answered([index]))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:  # each process may ask for images of its own
            return
        for answers, bad in Runtime().gather((self.answers, self.bad)):
            self.answers.update(answers)
            self.bad.update(bad)

    def predictions(self) -> Predictions:
        order = sorted(self.answers)
        if not order:
            raise ImageError(
                f"Expected at least one readable image, found none of {len(self.paths)}: "
                f"{next(iter(self.bad.values()))}"
            )
        skipped = tuple((self.paths[index], self.bad[index]) for index in sorted(self.bad))
        return replace(self._answered(order), skipped=skipped)

    def _answered(self, indexes: Sequence[int]) -> Predictions:
        outputs, strangeness = zip(*(self.answers[index] for index in indexes), strict=True)
        together = torch.cat(outputs, dim=1), torch.cat(strangeness)
        return predictions_of(self.model, together, [self.paths[index] for index in indexes])


@contextmanager
def _lightning_quiet() -> Iterator[None]:
    """Nothing about devices and products; what the caller has set is given back."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _plain_trainer(collected: Callback) -> Trainer:
    return Trainer(
        callbacks=[collected],
        devices=1,  # of several, Lightning would run the caller's script again on each
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
