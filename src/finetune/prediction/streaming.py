"""Images of a stream, answered batch by batch: nothing is kept but what is at work.

Threads read and decode a little ahead, in order. A block's batches depend on the block alone, so
that its answers do not depend on which process gives them, nor on what was answered before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.fabric import Fabric

from finetune.combining.ensemble import Ensemble
from finetune.combining.test_time_augmentation import chosen_views
from finetune.data.workers import usable_cores
from finetune.errors import ImageError
from finetune.prediction.answering import outputs_of, predictions_of
from finetune.prediction.inputs import ImageViews, collate_views, stopped_by
from finetune.prediction.predictions import Predictions
from finetune.runtime import Runtime
from finetune.spec.answer_settings import AnswerSettings
from finetune.spec.protocols import ImageBlock, StreamedImage
from finetune.training.classifier import ImageClassifier

READERS = 8  # threads at least: a store answers each read late, and many at once
Decoded = tuple[str, "list[torch.Tensor] | str"]


class AnsweredBatch(NamedTuple):
    """One batch.

    Attributes:
        names: of the images that were answered.
        predictions: for them; None where there are none.
        bad: the others, with the reason.
    """

    names: list[str]
    predictions: Predictions | None
    bad: list[tuple[str, str]]


class StreamPredictor:
    """A model on its device, that answers one stream after the other.

    Args:
        model: a classifier or an ensemble.
        settings: how.
        runtime: where.
    """

    def __init__(
        self,
        model: ImageClassifier | Ensemble,
        settings: AnswerSettings,
        runtime: Runtime,
    ) -> None:
        self.model = Ensemble.of(model)
        self.settings = settings
        place = runtime.device
        devices = 1 if place.type == "cpu" else [place.index or 0]
        precision = settings.precision
        self._fabric = Fabric(accelerator=place.type, devices=devices, precision=precision)
        self._fabric.setup_module(self.model.eval())  # in place: where it is, and how precise
        self._augmentations = chosen_views(settings.test_time_augmentation)
        limits = settings.max_pixels, settings.max_decoding_mb
        self._views = ImageViews([], self.model.preprocessings, *limits)
        self._threads = max(READERS, usable_cores())

    def __call__(self, block: ImageBlock) -> Iterator[AnsweredBatch]:
        """The answers to a block's images, in order.

        Raises:
            ImageError: an image, or the rest of the block, that cannot be read, unless such are
                skipped. DataError: the block cannot be read now.
        """
        pool = ThreadPoolExecutor(self._threads)
        try:
            decoded = self._decoded(block, pool)
            while batch := list(islice(decoded, self.settings.batch_size)):
                yield self._answered(batch)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decoded(self, block: ImageBlock, pool: ThreadPoolExecutor) -> Iterator[Decoded]:
        """Each image's views, or why there are none; a few of the next are in the making."""
        ahead: deque[tuple[str, Future[list[torch.Tensor] | str]]] = deque()
        broken: ImageError | None = None
        images = block.images()
        while True:
            while broken is None and len(ahead) < self.settings.batch_size + self._threads:
                try:
                    image = next(images, None)
                except ImageError as error:
                    broken = error
                    break
                if image is None:
                    break
                ahead.append((image.name, pool.submit(self._read, image)))
            if not ahead:
                break
            name, views = ahead.popleft()
            yield name, views.result()
        if broken is not None:
            yield block.first, str(broken)

    def _read(self, image: StreamedImage) -> list[torch.Tensor] | str:
        try:
            content = image.read()
        except ImageError as error:
            return str(error)
        return self._views.of(lambda reader: reader.decode(content, name=image.name))

    @torch.inference_mode()
    def _answered(self, batch: Sequence[Decoded]) -> AnsweredBatch:
        indexes, views, bad = collate_views([(i, views) for i, (_, views) in enumerate(batch)])
        reasons = [(batch[index][0], reason) for index, reason in bad]
        if reasons and self.settings.on_bad_image == "error":
            raise stopped_by(reasons[0][1])
        names = [batch[index][0] for index in indexes]
        if not names:
            return AnsweredBatch([], None, reasons)
        paths = [Path(name) for name in names]
        with self._fabric.autocast():
            placed = self._fabric.to_device(views)
            outputs, strangeness = outputs_of(self.model, placed, paths, self._augmentations)
        found = predictions_of(self.model, (outputs.cpu(), strangeness.cpu()), paths)
        return AnsweredBatch(names, found, reasons)
