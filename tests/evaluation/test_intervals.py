"""Intervals against scipy, and against what an interval promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from finetune.evaluation import intervals
from finetune.evaluation.intervals import (
    bootstrap_counts,
    bootstrap_interval,
    percentile_interval,
    resampled_counts,
    wilson_interval,
)
from finetune.evaluation.scores import bootstrap_macro_scores


@settings(deadline=None)
@given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.floats(0.01, 0.999),
)
def test_wilson_equals_scipy(counts: tuple[int, int], level: float) -> None:
    correct, total = counts
    for given_level, wanted in (({"confidence_level": level}, level), ({}, 0.95)):
        reference = binomtest(correct, total).proportion_ci(wanted, method="wilson")
        found = wilson_interval(correct, total, **given_level)
        assert found == pytest.approx(tuple(reference), abs=1e-12)


def test_a_percentile_interval_is_the_central_share() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert percentile_interval(values) == pytest.approx((25, 975))
    assert percentile_interval(values, confidence_level=0.9) == pytest.approx((50, 950))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    for call in (
        lambda: wilson_interval(1, 2, confidence_level=level),
        lambda: bootstrap_interval(np.ones(3), confidence_level=level),
        lambda: percentile_interval(np.ones(3), confidence_level=level),
    ):
        with pytest.raises(ValueError, match=rf"level in \(0, 1\), found {level}"):
            call()


def test_nothing_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval(np.array([]))


def test_single_images_and_whole_groups_are_drawn_alike() -> None:
    """As many as there are, each on average once, and one group as often as another."""
    alone = resampled_counts(None, 5, resamples=4000)
    assert alone.shape == (4000, 5)
    assert (alone.sum(axis=1) == 5).all()
    assert alone.mean(axis=0) == pytest.approx(np.ones(5), abs=0.06)
    assert alone.var(axis=0) == pytest.approx(np.full(5, 0.8), abs=0.08)  # of 5 draws in 5
    assert np.array_equal(alone, resampled_counts(np.array([3, 9, 1, 0, 4]), 5, resamples=4000))
    grouped = resampled_counts(np.array([7, 2, 7, 7, 2]), 5, resamples=4000)
    assert np.array_equal(grouped[:, [0, 1]], resampled_counts(None, 2, resamples=4000))
    assert np.array_equal(grouped[:, [0, 1, 0, 0, 1]], grouped)
    assert not np.array_equal(alone, resampled_counts(None, 5, resamples=4000, seed=1))
    assert len(resampled_counts(None, 5)) == 1000


@pytest.mark.parametrize(("images", "resamples"), [(20, 1000), (40, 500), (100, 200), (1000, 200)])
def test_many_images_are_resampled_less_often(
    images: int, resamples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "MOST_COUNTS", 20_000)
    assert bootstrap_counts(None, images).shape == (resamples, images)


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
    again = bootstrap_interval(values)
    assert again == bootstrap_interval(values, confidence_level=0.95, resamples=2000, seed=0)


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
