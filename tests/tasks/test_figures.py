import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from finetune.tasks.multiclass import MULTICLASS


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 14), st.integers(1, 60), st.integers(0, 2**31))
def test_figures_equal_scikit_learn(classes: int, images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(images, classes)), dtype=torch.float32)
    labels = torch.tensor(rng.integers(classes, size=images))
    figures = MULTICLASS.figures(logits, labels)
    predictions = logits.argmax(-1)
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    present = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    recall = recall_score(labels, predictions, **present)
    assert figures["balanced_accuracy"] == pytest.approx(recall, abs=1e-5)
    f1 = f1_score(labels, predictions, **present)
    assert figures["macro_f1"] == pytest.approx(f1, abs=1e-5)
    expected = log_loss(labels, logits.double().softmax(-1), labels=np.arange(classes))
    assert figures["nll"] == pytest.approx(expected, rel=1e-9)
    squares = (logits.double().softmax(-1) - torch.nn.functional.one_hot(labels, classes)).square()
    assert figures["brier"] == pytest.approx(float(squares.sum(-1).mean()))


def test_calibration_error_of_certain_and_right_answers_is_zero() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    figures = MULTICLASS.figures(logits, torch.tensor([0, 1]))
    assert figures["calibration_error"] == pytest.approx(0, abs=1e-5)


def test_calibration_error_of_certain_and_half_wrong_answers() -> None:
    logits = torch.tensor([[100.0, 0.0]] * 4)
    figures = MULTICLASS.figures(logits, torch.tensor([0, 0, 1, 1]))
    assert figures["calibration_error"] == pytest.approx(0.5, abs=1e-5)


def test_logits_between_zero_and_one_are_logits_all_the_same() -> None:
    logits = torch.tensor([[0.9, 0.1]] * 2)
    figures = MULTICLASS.figures(logits, torch.tensor([0, 0]))
    confidence = float(logits[0].softmax(-1)[0])
    assert figures["calibration_error"] == pytest.approx(1 - confidence, abs=1e-5)


def test_top_five_is_told_from_eleven_classes_on() -> None:
    assert not any("top" in name for name in MULTICLASS.figure_names(10))
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(23, 12, generator=generator), torch.arange(23) % 12
    figures = MULTICLASS.figures(logits, labels)
    assert list(figures) == MULTICLASS.figure_names(12)
    expected = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(12))
    assert figures["top5_accuracy"] == pytest.approx(expected)
