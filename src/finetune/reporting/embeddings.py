"""Pooled features of images, for a map of them and for finding images of no class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.combining.members import Member
from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.reporting.explain import weighted_classifiers
from finetune.reporting.thumbnails import locate
from finetune.training.classifier import ImageClassifier
from finetune.training.features.extract import live_features


def listened_to(model: ImageClassifier | Member) -> ImageClassifier | None:
    """The classifier that counts most in an answer; None where all of it comes from files."""
    classifiers = weighted_classifiers(model)
    return max(classifiers, key=lambda pair: pair[1])[0] if classifiers else None


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
