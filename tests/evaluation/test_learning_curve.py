"""Power laws of errors: their parameters come back, and the band holds the true gain."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.evaluation.learning_curve import EXPONENTS, LearningCurve, power_laws

SIZES = (60, 85, 120, 170, 240)


def test_the_law_that_made_the_errors_is_found() -> None:
    sizes, c = np.array(SIZES, dtype=float), EXPONENTS[15]
    a, b = np.array([0.05, 0.0, 0.3]), np.array([3.0, 2.0, 0.0])
    errors = a[:, None] + b[:, None] * sizes**-c
    found = power_laws(sizes, errors, np.full(3, 2.0))
    predicted = found[0][:, None] + found[1][:, None] * sizes ** -found[2][:, None]
    np.testing.assert_allclose(predicted, errors, atol=1e-12)
    np.testing.assert_allclose(found[0], a, atol=1e-9)
    np.testing.assert_allclose(found[2][:2], c)


@pytest.mark.parametrize(
    "errors", [[0.1, 0.2, 0.3, 0.4, 0.5], [0.4, 0.1, 0.02, 0.0, 0.0]], ids=["rises", "ends at 0"]
)
def test_no_law_falls_below_zero_or_rises(errors: list[float]) -> None:
    a, b, c = power_laws(np.array(SIZES, dtype=float), np.array([errors]), np.ones(1))
    assert a.min() >= 0
    assert b.min() >= 0
    assert c.max() <= 1


def drawn(seed: int, a: float, b: float, c: float, images: int = 200) -> NDArray[np.float64]:
    """Right and wrong answers of images that are each harder or easier, at every size."""
    hard = np.random.default_rng(seed).uniform(size=images)
    errors = a + b * np.array(SIZES, dtype=float) ** -c
    # Of four fits each: an image is wrong in some of them near its own limit.
    noise = np.random.default_rng(seed + 1).normal(0, 0.03, size=(4, images, len(SIZES)))
    return (hard[:, None] + noise < errors).mean(axis=0)


def test_the_band_holds_the_true_gain_as_often_as_it_says() -> None:
    inside = []
    for seed, (a, b, c) in enumerate([(0.05, 4.0, 0.8), (0.2, 2.0, 0.5), (0.02, 8.0, 1.0)] * 15):
        truth = b * (300.0**-c - 350.0**-c)
        gain = LearningCurve(SIZES, drawn(7 * seed, a, b, c)).gain(300, 50)
        inside.append(gain.low <= truth <= gain.high)
    assert 0.85 <= np.mean(inside) <= 1


def test_images_of_one_group_are_no_further_evidence() -> None:
    wrong = drawn(0, 0.05, 4.0, 0.8)
    copies = np.repeat(wrong, 3, axis=0)
    alone = LearningCurve(SIZES, wrong).gain(300, 50)
    grouped = LearningCurve(SIZES, copies, np.repeat(np.arange(len(wrong)), 3)).gain(300, 50)
    apart = LearningCurve(SIZES, copies).gain(300, 50)
    assert grouped.value == pytest.approx(alone.value, abs=1e-12)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert apart.high - apart.low < 0.8 * (grouped.high - grouped.low)


def test_how_many_images_a_wanted_gain_takes() -> None:
    sizes, c = np.array(SIZES, dtype=float), EXPONENTS[19]
    errors = 0.1 + 30 * sizes**-c
    thresholds = (np.arange(2000) + 0.5) / 2000
    curve = LearningCurve(SIZES, (thresholds[:, None] < errors).astype(float))
    more = curve.images_for(240, 0.02)
    assert more is not None
    assert curve.gain(240, more).value == pytest.approx(0.02, abs=1e-3)
    assert curve.images_for(240, 0.5) is None
