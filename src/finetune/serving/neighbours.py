"""The training images that lie nearest to one, as the network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch

from finetune.data.decoding import MAX_PIXELS, ImageReader
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.transforms import evaluation_transform
from finetune.errors import DataError, UsageError
from finetune.prediction.feature_space import Features, features_of
from finetune.prediction.images_of_fits import images_of_fits
from finetune.reporting.thumbnails import data_uri, read_thumbnail
from finetune.runtime import device_of
from finetune.spec.images import content_id
from finetune.spec.labels import cell
from finetune.spec.splits import SplitRecord
from finetune.training.classifier import ImageClassifier
from finetune.training.features.recorded import recorded_features
from finetune.training.features.store import FeatureStore

NUMBER = 6


class Like(NamedTuple):
    """A training image: its label, how far it lies, from 0 to 2, and its thumbnail."""

    label: str
    distance: float
    image: str


class Neighbours:
    """Training images of a classifier, where they lie today, as points of its space.

    Args:
        classifier: where it is, it runs.
        fits: how the fits behind it split their images.
        root: the folder of images.
        store: where features are looked up, and kept.
        max_pixels, max_decoding_mb: limits of images that are asked about.

    Raises:
        UsageError: no training image of the fits lies there.
    """

    def __init__(
        self,
        classifier: ImageClassifier | None,
        fits: Sequence[SplitRecord],
        root: Path,
        store: FeatureStore | None = None,
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
    ) -> None:
        known, class_names = images_of_fits(fits, root, "train")
        if classifier is None:
            raise UsageError(
                "Expected a classifier whose space training images lie in, found saved "
                "predictions alone; leave --data.root out."
            )
        self.classifier = classifier
        self.features = features_of(classifier, known, max_pixels=max_pixels, store=store)
        # What lies at the place of a training image need not be it.
        self._labels = {
            path: cell(known[path].label, class_names)
            for path, identity in zip(self.features.paths, self.features.ids, strict=True)
            if identity == known[path].id
        }
        self._reader = ImageReader.of(
            [classifier.preprocessing], max_pixels=max_pixels, max_decoding_mb=max_decoding_mb
        )

    def nearest(self, content: bytes, network: AbstractContextManager[object]) -> list[Like]:
        """The nearest first; images that have gone since are left out.

        Raises:
            ImageError: it cannot be read.
            DataError: there is no training image left.
        """
        transform = evaluation_transform(self.classifier.preprocessing)
        view = transform(self._reader.decode(content, name="image"))[None]
        with network, recorded_features(self.classifier) as points, torch.inference_mode():
            self.classifier(view.to(device_of(self.classifier)))
        key, identity = self.features.network, content_id(content)
        point = Features(key, ("image",), (identity,), points[0].numpy())
        found: list[Like] = []
        for path, distance in point.nearest(self.features, len(self.features)):
            pixels = read_thumbnail(path) if path in self._labels else None
            if pixels is not None:
                found.append(Like(self._labels[path], distance, data_uri(pixels)))
            if len(found) == NUMBER:
                break
        if not found:
            raise DataError("Expected training images to compare with, found none any more.")
        return found
