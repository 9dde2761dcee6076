"""Intervals against scipy, and against what an interval promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from finetune.evaluation.intervals import bootstrap_interval, percentile_interval, wilson_interval
from finetune.evaluation.scores import bootstrap_macro_scores


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts: tuple[int, int]) -> None:
    correct, total = counts
    reference = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx(tuple(reference), abs=1e-12)


def test_wilson_of_no_images_knows_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "total"), [(3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="0 <= correct <= total"):
        wilson_interval(correct, total)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_bootstrap_brackets_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    low, high = bootstrap_interval(np.array(values), confidence_level=0.99)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_bootstrap_agrees_with_drawing_images_one_by_one() -> None:
    values = np.random.default_rng(3).exponential(size=120)
    rng = np.random.default_rng(4)
    means = np.array([rng.choice(values, len(values)).mean() for _ in range(4000)])
    assert bootstrap_interval(values, resamples=4000) == pytest.approx(
        percentile_interval(means), abs=0.02
    )


def test_a_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.85 <= high
        for low, high in (wilson_interval(int(k), 60) for k in rng.binomial(60, 0.85, size=2000))
    ]
    assert 0.93 <= np.mean(covered) <= 0.975


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(10.0)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


# Labels and answers: of 34 images of one class 4 are taken for the other, of 26 of that 6.
ANSWERS = np.repeat([0, 0, 1, 1], [30, 4, 6, 20]), np.repeat([0, 1, 0, 1], [30, 4, 6, 20])


def test_macro_scores_of_images_that_are_groups_of_one_have_the_same_intervals() -> None:
    alone = np.arange(60)
    drawn = bootstrap_macro_scores(*ANSWERS, alone, classes=2, resamples=4000)
    cells = bootstrap_macro_scores(*ANSWERS, classes=2, resamples=4000)
    assert np.array(drawn) == pytest.approx(np.array(cells), abs=0.02)


def test_macro_scores_are_drawn_by_their_seed() -> None:
    drawn = [
        bootstrap_macro_scores(*ANSWERS, classes=2, resamples=200, seed=seed) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_higher_level_is_a_wider_interval_around_the_lower_one() -> None:
    values = np.arange(50.0)
    half, most = (
        [
            bootstrap_interval(values, confidence_level=level),
            *bootstrap_macro_scores(*ANSWERS, classes=2, confidence_level=level, resamples=2000),
        ]
        for level in (0.5, 0.99)
    )
    for (low, high), (lowest, highest) in zip(half, most, strict=True):
        assert lowest < low < high < highest
