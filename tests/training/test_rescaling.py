import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune.training.rescaling import best_temperature


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_of_drawn_labels_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator)[:, 0]
    assert best_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_it_is_the_minimum_of_the_nll():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5000, 3, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]
    found = best_temperature(logits, labels)
    best = cross_entropy(logits / found, labels)
    for other in (0.5, 0.9, 1.1, 2.0):
        assert cross_entropy(logits / (found * other), labels) > best


def test_pictures_all_answered_right_do_not_sharpen_without_end():
    logits = torch.eye(4).repeat(10, 1) * 3
    labels = torch.arange(4).repeat(10)
    confidence = (logits / best_temperature(logits, labels)).softmax(1).amax()
    assert 0.9 < float(confidence) < 1 - 1 / 60


def test_a_hopeless_classifier_gets_flat_within_bounds():
    logits = torch.eye(3).repeat(5, 1)
    assert best_temperature(logits, (torch.arange(15) + 1) % 3) == pytest.approx(10, rel=1e-3)
