"""The activations of frozen stages that a fit uses: of which images, in which random views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from finetune.errors import NetworkError
from finetune.networks.freezing import split_at, stages_below
from finetune.networks.staged import Staged, readable_stages
from finetune.spec.images import Split
from finetune.spec.protocols import FitData
from finetune.training.classifier import ImageClassifier
from finetune.training.features.datamodule import CachedActivationsDataModule
from finetune.training.features.extract import (
    Normalising,
    StageReader,
    StoredView,
    activation_shape,
    dataset_for,
    frozen_features,
)
from finetune.training.features.store import Activations, FeatureStore


@dataclass(frozen=True, slots=True)
class CachedActivations:
    """What is computed once an image and cached for later epochs, phases, fits.

    Attributes:
        classifier: whose lower stages are run.
        datamodule: an ``ImageFolderDataModule`` that has found its images.
        store: None caches them in memory.
        say: gets a line where they would take too much room.
    """

    classifier: ImageClassifier
    datamodule: FitData
    store: FeatureStore | None
    say: Callable[[str], None]

    def at(
        self,
        boundary: str,
        split: Split,
        view: StoredView | None = None,
        *,
        by: Normalising | None = None,
    ) -> Activations:
        """Those of a split's images below a stage; without a view, of the plain images."""
        images, workers = dataset_for(self.classifier, self.datamodule, split, view)
        return frozen_features(
            by or self.classifier,
            images,
            boundary=boundary,
            view=view,
            store=self.store,
            num_workers=workers,
        )

    def stages(self) -> tuple[str, ...]:
        """Those that the final layer reads, or else could read."""
        classifier = self.classifier
        if isinstance(classifier.network, Staged):
            return classifier.network.read
        wanted = classifier.hparams["stages"] == "auto"
        return readable_stages(classifier.network) if wanted else ()

    def entering(self, split: Split, view: StoredView | None = None) -> tuple[Tensor, Tensor]:
        """What enters the final layer ``(N, D)``, and further what it could read of stages.

        Both come out of one pass. ``(N, 0)`` where there are no stages, or it reads them already.
        """
        network, stages = self.classifier.network, self.stages()
        if not stages:
            features = self.at("head", split, view).tensor()
            return features, features[:, :0]
        reader = StageReader.of(self.classifier, stages)
        features = self.at("head", split, view, by=reader).tensor()
        if isinstance(network, Staged):
            scales = network.read_scales.to(features)
            features[:, network.head_width :] *= scales
            return features, features[:, :0]
        width = network.get_classifier().in_features
        return features[:, :width], features[:, width:]

    def views(self, count: int) -> list[StoredView]:
        """Random views of the split's seed: fits that differ in their training seed share them."""
        if self.datamodule.augmentation == "none":
            return []
        seed = self.datamodule.split_settings.seed
        return [StoredView(number, self.datamodule.augmentation, seed) for number in range(count)]

    def data_for(self, boundary: str, epochs: int) -> CachedActivationsDataModule | None:
        """Batches for a phase above the boundary, or None where images have to run live."""
        network = self.classifier.network
        if not stages_below(network, boundary) or self.classifier.mix is not None:
            return None
        try:
            split_at(network, boundary)
        except NetworkError:
            return None
        # As many passes over the frozen part as there are views: never more than live epochs.
        views = self.views(min(self.classifier.hparams["views"], epochs - 1))
        if not self._fits(boundary, len(views) + 1):
            self.say("the activations would take too much room: images run live")
            return None
        val = self.at(boundary, "val") if self.datamodule.images("val") else None
        train = [self.at(boundary, "train", view) for view in (None, *views)]
        return CachedActivationsDataModule(self.datamodule, train, val)

    def _fits(self, boundary: str, views: int) -> bool:
        images = views * len(self.datamodule.images("train"))
        images += len(self.datamodule.images("val"))
        room = self.store or FeatureStore()
        return room.fits(images, activation_shape(self.classifier, boundary))
