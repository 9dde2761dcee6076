"""Pooled features of images, for a map of them and for finding pictures of no class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.images import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.reporting.thumbnails import locate
from finetune.training.classifier import ImageClassifier
from finetune.training.features import live_features


def embed(
    classifier: ImageClassifier,
    paths: Sequence[str],
    *,
    root: Path | None = None,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """What enters the final layer, ``(N, D)``, for images named as in an evaluation.

    Raises:
        ImageError: a picture that cannot be read.
    """
    preprocessing = classifier.preprocessing
    reader = ImageReader(in_chans=preprocessing.in_chans, short_side=preprocessing.resize_size)
    transform = evaluation_transform(preprocessing)
    rows = []
    classifier.eval()
    for batch in _batches(paths, batch_size):
        images = torch.stack([transform(reader(locate(path, root))) for path in batch])
        with torch.inference_mode():
            features = live_features(classifier, images.to(classifier.device))
        rows.append(features.flatten(1).float().cpu().numpy())
    return np.concatenate(rows)


def _batches(paths: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))
