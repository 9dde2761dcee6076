"""Pooled features of images, for a map of them and for finding images of no class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.combining.members import Member
from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.reporting.explain import weighted_classifiers
from finetune.reporting.thumbnails import locate
from finetune.training.classifier import ImageClassifier
from finetune.training.features.extract import live_features


@contextmanager
def recorded_features(model: ImageClassifier | Member) -> Iterator[list[Tensor]]:
    """Keep what enters the final layer, ``(B, D)`` a batch in turn, while images are judged.

    Of an ensemble, the classifier that counts most is listened to. The list stays empty where
    there is no classifier, or none with a final layer of its own.
    """
    features: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        features.append(arguments[0].detach().flatten(1).float().cpu())

    classifiers = weighted_classifiers(model)
    heads = [
        classifier.network.get_classifier()
        for classifier, _ in sorted(classifiers, key=lambda pair: -pair[1])[:1]
    ]
    handles = [
        head.register_forward_pre_hook(keep) for head in heads if isinstance(head, nn.Module)
    ]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def embed(
    classifier: ImageClassifier,
    paths: Sequence[str],
    *,
    root: Path | None = None,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """What enters the final layer, ``(N, D)``, for images named as in an evaluation.

    Raises:
        ImageError: an image that cannot be read.
    """
    preprocessing = classifier.preprocessing
    reader = ImageReader.of([preprocessing])
    transform = evaluation_transform(preprocessing)
    rows = []
    classifier.eval()
    for batch in _batches(paths, batch_size):
        images = torch.stack([transform(reader(locate(path, root))) for path in batch])
        with torch.inference_mode():
            features = live_features(classifier, images.to(classifier.mean.device))
        rows.append(features.flatten(1).float().cpu().numpy())
    return np.concatenate(rows)


def _batches(paths: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))
