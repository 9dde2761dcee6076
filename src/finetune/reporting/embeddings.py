"""Pooled features of images, for a map of them and for finding images of no class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.combining.members import Member
from finetune.prediction.feature_space import features_of
from finetune.reporting.explain import weighted_classifiers
from finetune.reporting.thumbnails import locate
from finetune.training.classifier import ImageClassifier


def listened_to(model: ImageClassifier | Member) -> ImageClassifier | None:
    """The classifier that counts most in an answer; None where all of it comes from files."""
    classifiers = weighted_classifiers(model)
    return max(classifiers, key=lambda pair: pair[1])[0] if classifiers else None


def embed(
    classifier: ImageClassifier, paths: Sequence[str], *, root: Path | None = None
) -> NDArray[np.float32]:
    """What enters the final layer, ``(N, D)``, for images named as in an evaluation.

    Raises:
        DataError, ImageError: an image that is not there, or cannot be read.
    """
    return features_of(classifier, [locate(path, root) for path in paths]).values
