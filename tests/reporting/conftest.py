"""Evaluations to draw and to write."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.result import Evaluation

Make = Callable[..., Evaluation]


@pytest.fixture
def make_evaluation() -> Make:
    """Random answers that are mostly right."""

    def make(
        n_images: int, class_names: Sequence[str], paths: Sequence[str] | None = None, seed: int = 0
    ) -> Evaluation:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, len(class_names), n_images)
        logits = rng.normal(size=(n_images, len(class_names))) * 2
        logits[np.arange(n_images), labels] += 3
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return evaluate(labels, probabilities, class_names, paths)

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Thirty images of noise, wider than high."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        pixels = rng.integers(0, 255, size=(90, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return folder
