import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from finetune.combining.calibration import fit_temperature
from finetune.training.temperature import best_temperature


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


def test_images_all_answered_right_do_not_sharpen_without_end():
    logits = torch.eye(4).repeat(10, 1) * 3
    labels = torch.arange(4).repeat(10)
    confidence = (logits / best_temperature(logits, labels)).softmax(1).amax()
    assert 0.9 < float(confidence) < 1 - 1 / 60


def test_a_hopeless_classifier_gets_flat_within_bounds():
    logits = torch.eye(3).repeat(5, 1)
    assert best_temperature(logits, (torch.arange(15) + 1) % 3) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("prior", [0.3, math.inf])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_most_probable_temperature_is_scipys(prior: float, scale: float) -> None:
    """The one fit, for epochs, phases and calibration alike."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(80, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]

    def loss(log_temperature: float) -> float:
        answer = scale * logits / math.exp(log_temperature)
        nll = torch.nn.functional.cross_entropy(answer, labels, reduction="sum")
        return float(nll) + log_temperature**2 / (2 * prior**2)

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}).x
    found = best_temperature(scale * logits, labels, prior=prior, unsure=False)
    assert math.log(found) == pytest.approx(best, abs=1e-5)
    fitted = fit_temperature(scale * logits, labels, prior=prior)
    assert math.log(fitted.temperature) == pytest.approx(best, abs=1e-5)
