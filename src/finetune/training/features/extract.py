"""What is frozen runs once an image: activations at the frozen boundary, computed once and cached.

Pooled features for the final layer alone (``boundary="head"``), feature maps for a few stages. They
are equal to those of a live forward in ``eval`` to float tolerance, and shared by seeds, folds,
ensemble members and later runs, for the key is what decides them and nothing else: the image's
bytes, the preprocessing, the network and its weights below the boundary, and the view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.cache_dir import file_stamp
from finetune.data.dataset import Draw, ImageDataset
from finetune.data.image_bytes import image_id
from finetune.data.transforms import (
    Augmentation,
    collate_bytes,
    evaluation_transform,
    training_transform,
)
from finetune.data.workers import choose_num_workers
from finetune.errors import DataError
from finetune.long_steps import told
from finetune.networks.freezing import network_stages, split_at, stages_below
from finetune.networks.image_network import ImageNetwork
from finetune.networks.normalising import normalised
from finetune.networks.staged import reader_of
from finetune.runtime import can_pin_memory
from finetune.spec.images import LabelledImage, Split
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.protocols import FitData
from finetune.training.features.store import Activations, FeatureStore, cached_or_computed

# Images a forward pass: on a processor, as many as its caches take.
BATCH_SIZE = {"cpu": 8, "accelerator": 64}
CHEAPER = "; a smaller --model.image_size or another backbone takes less (finetune choose measures)"
FORMAT = 1  # counts up whenever transforms or networks change what they compute


class Normalising(Protocol):
    """What is needed of a classifier."""

    network: ImageNetwork
    spec: NetworkSpec
    preprocessing: Preprocessing
    mean: Tensor
    std: Tensor


@dataclass(slots=True)
class StageReader:
    """A classifier's twin, whose features are the final layer's and then those of stages."""

    network: ImageNetwork
    spec: NetworkSpec
    preprocessing: Preprocessing
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, classifier: Normalising, stages: Sequence[str]) -> StageReader:
        """The twin; both share all modules."""
        return cls(
            reader_of(classifier.network, stages),
            classifier.spec.reading(stages),
            classifier.preprocessing,
            classifier.mean,
            classifier.std,
        )


@dataclass(frozen=True, slots=True)
class StoredView:
    """A stored random view: its number from 0, the augmentation's name, and the seed."""

    number: int
    augmentation: Augmentation
    seed: int = 0

    def seed_for(self, key: str) -> int:
        """Seed of one image's view: the same in every split, fold and run."""
        text = f"{self.seed} {self.number} {key}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def frozen_features(
    classifier: Normalising,
    dataset: ImageDataset,
    *,
    boundary: str = "head",
    view: StoredView | None = None,
    store: FeatureStore | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
) -> Activations:
    """Activations at the boundary, in the order of ``dataset.images``.

    Args:
        classifier: its network is left as it is, modes and memory format included.
        dataset: images with the evaluation transform or, for a view, the training transform.
        boundary: a stage's name; everything below it is run.
        view: which random view; None for the evaluation transform.
        store: where to look first and cache what was computed; None caches it in memory only.
        batch_size, num_workers: of the forward pass over what was not cached; a batch is 8 images
            on a CPU and 64 on an accelerator where it is not given.

    Raises:
        DataError: an image that changed meanwhile: its activations would be cached as the old ones.
        ImageError: an image that cannot be read.
        NetworkError: the network cannot be cut at this boundary.
    """
    keys = [image.id or image_id(image.path) for image in dataset.images]
    size = (
        batch_size or BATCH_SIZE["cpu" if classifier.mean.device.type == "cpu" else "accelerator"]
    )

    def compute(missing: list[int]) -> Iterator[np.ndarray]:
        draws: list[int | Draw] = [
            index if view is None else Draw(index, view.seed_for(keys[index])) for index in missing
        ]
        yield from _forward(classifier, dataset, draws, boundary, size, num_workers)
        for index in missing:
            _check_unchanged(dataset.images[index], keys[index])

    return cached_or_computed(store, space_key(classifier, boundary, view), keys, compute)


def dataset_for(
    classifier: Normalising, datamodule: FitData, split: Split, view: StoredView | None = None
) -> tuple[ImageDataset, int]:
    """A split's images as the classifier sees them, and how many processes should read them."""
    preprocessing = classifier.preprocessing
    transform = (
        evaluation_transform(preprocessing)
        if view is None
        else training_transform(preprocessing, view.augmentation)
    )
    dataset = ImageDataset(datamodule.images(split), transform, datamodule.reader(preprocessing))
    return dataset, choose_num_workers(dataset.paths, datamodule.num_workers)


def space_key(classifier: Normalising, boundary: str, view: StoredView | None) -> str:
    """Name of everything that decides an activation except the image."""
    digest = hashlib.blake2b(digest_size=16)
    described = (
        FORMAT,
        classifier.spec.key,
        classifier.preprocessing.to_dict(),
        boundary,
        view,
    )
    digest.update(repr(described).encode())
    for name, value in sorted(_state_below(classifier.network, boundary).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def live_features(classifier: Normalising, images: Tensor, boundary: str = "head") -> Tensor:
    """Activations of a batch of images, bytes or floats in ``[0, 1]``; eval mode, no gradients."""
    bottom = split_at(classifier.network, boundary).bottom
    return bottom(normalised(images, classifier.mean, classifier.std))


def _check_unchanged(image: LabelledImage, key: str) -> None:
    try:
        same = file_stamp(image.path) == image.stamp or image_id(image.path) == key
    except OSError:
        same = False
    if not same:
        raise DataError(
            f"Expected {image.path} to stay as it is while it is learnt from, found that it has "
            "changed; start again when nothing writes there any more."
        )


def _forward(
    classifier: Normalising,
    dataset: ImageDataset,
    draws: Sequence[int | Draw],
    boundary: str,
    batch_size: int,
    num_workers: int,
) -> Iterator[np.ndarray]:
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=draws,
        num_workers=num_workers,
        pin_memory=can_pin_memory(),
        collate_fn=collate_bytes,
    )
    device = classifier.mean.device
    # Convolutions run 1.3 to 1.5 times faster so on the processors and accelerators tried; the
    # modules are shared, so the format is given back.
    classifier.network.to(memory_format=torch.channels_last)
    try:
        for images, *_ in told(loader, "Computing features", len(loader), cheaper=CHEAPER):
            images = images.to(device, non_blocking=device.type == "cuda")
            activations = live_features(classifier, images, boundary)
            yield activations.float().contiguous().cpu().numpy()
    finally:
        classifier.network.to(memory_format=torch.contiguous_format)


def activation_shape(classifier: Normalising, boundary: str) -> tuple[int, ...]:
    """Shape of one image's activations."""
    preprocessing = classifier.preprocessing
    size = preprocessing.image_size
    blank = torch.zeros(1, preprocessing.in_chans, size, size, device=classifier.mean.device)
    return tuple(live_features(classifier, blank, boundary).shape[1:])


def _state_below(network: ImageNetwork, boundary: str) -> dict[str, Tensor]:
    """Parameters and buffers of the stages below the boundary."""
    stages = network_stages(network)
    below = stages_below(network, boundary)
    above = {name for stage, names in stages.items() if stage not in below for name in names}
    # Buffers belong to the module whose parameters stand beside them.
    modules_above = {name.rpartition(".")[0] for name in above}
    return {
        name: value
        for name, value in network.state_dict().items()
        if name not in above and (name.rpartition(".")[0] not in modules_above or "." not in name)
    }
