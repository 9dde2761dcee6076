import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from finetune.evaluation.separation import auroc_interval, separation

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_the_area_is_that_of_scikit_learn(strange: list[int], known: list[int]) -> None:
    found = separation(np.array(strange, float), np.array(known, float))
    truth = [1] * len(strange) + [0] * len(known)
    assert found.auroc == pytest.approx(roc_auc_score(truth, strange + known))
    assert sum(found.strangers) == pytest.approx(0, abs=1e-9)
    assert sum(found.known) == pytest.approx(0, abs=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normal scores one standard deviation apart: the area is known."""
    generator = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(0.5))  # Phi(1 / sqrt 2)
    covered = 0
    for _ in range(400):
        found = separation(generator.normal(1, 1, 60), generator.normal(0, 1, 80))
        variance = (found.strangers**2).sum() + (found.known**2).sum()
        low, high = auroc_interval(found.auroc, float(variance), 60)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_images_that_are_all_told_apart_leave_doubt() -> None:
    assert auroc_interval(1.0, 0.0, 20) == pytest.approx((0.839, 1.0), abs=1e-3)
    assert auroc_interval(0.0, 0.0, 20) == pytest.approx((0.0, 0.161), abs=1e-3)


def test_an_interval_ends_where_areas_do() -> None:
    low, high = auroc_interval(0.95, 0.0025, 20)
    assert (low, high) == (pytest.approx(0.95 - 1.959964 * 0.05), 1.0)
    assert auroc_interval(0.05, 0.0025, 20) == pytest.approx((0.0, 1 - low))


def test_scores_that_are_all_equal_say_nothing() -> None:
    found = separation(np.zeros(5), np.zeros(7))
    assert found.auroc == 0.5
    variance = float((found.strangers**2).sum() + (found.known**2).sum())
    assert auroc_interval(found.auroc, variance, 5) == (0.0, 1.0)


def test_both_kinds_are_needed() -> None:
    with pytest.raises(ValueError, match="0 strange"):
        separation(np.array([]), np.array([1.0]))
