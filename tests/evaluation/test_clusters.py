"""Intervals of images in groups, against what an interval promises and against those without."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.clusters import about_groups, independent_images, share_interval
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.intervals import wilson_interval
from finetune.evaluation.paired import accuracy_difference

SHARE = 0.85  # that is right in truth


def grouped_rights(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of 30 patients with 2 to 12 images each, who differ in how hard they are."""
    sizes = rng.integers(2, 13, size=30)
    easy = rng.beta(SHARE * 2, (1 - SHARE) * 2, size=30)
    groups = np.repeat(np.arange(30), sizes)
    return rng.random(len(groups)) < easy[groups], groups


def test_an_interval_over_groups_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = {"grouped": 0, "alone": 0}
    for _ in range(1000):
        right, groups = grouped_rights(rng)
        for name, of in (("grouped", groups), ("alone", None)):
            low, high = share_interval(right, of)
            covered[name] += low <= SHARE <= high
    assert 930 <= covered["grouped"] <= 980
    assert covered["alone"] < 850  # which is why


def test_a_paired_difference_over_groups_is_seldom_found_where_there_is_none() -> None:
    rng, found = np.random.default_rng(0), {"grouped": 0, "alone": 0}
    for _ in range(200):
        groups = np.repeat(np.arange(25), 8)
        # Each of two equally good networks fails on patients of its own.
        one, other = (rng.random(25)[groups] < 0.8 for _ in range(2))
        for name, of in (("grouped", groups), ("alone", None)):
            found[name] += accuracy_difference(one, other, groups=of).p_value < 0.05
    assert found["grouped"] <= 18  # of 10 that are promised
    assert found["alone"] > 60


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_never_tell_more_than_images_nor_less_than_one(data: st.DataObject) -> None:
    right = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=40)))
    of = st.lists(st.integers(0, 9), min_size=len(right), max_size=len(right))
    groups = np.array(data.draw(of))
    assert 1 <= independent_images(right, groups) <= len(right)
    (low, high), (narrow_low, narrow_high) = share_interval(right, groups), share_interval(right)
    assert 0 <= low <= narrow_low <= right.mean() <= narrow_high <= high <= 1


def test_copies_count_once() -> None:
    right = np.array([True, False, True, True, False, True, True, True])
    four_times = np.repeat(right, 4), np.repeat(np.arange(8), 4)
    assert independent_images(*four_times) <= 8
    all_right = np.ones(32, dtype=bool)
    assert share_interval(all_right, four_times[1]) == wilson_interval(8, 8)


def test_groups_of_hardly_any_image_change_nothing() -> None:
    right = np.arange(100) % 5 > 0
    pairs = np.array([0, 0, *range(1, 99)])
    assert share_interval(right, pairs) == share_interval(right)
    assert accuracy_difference(right, ~right, groups=pairs) == accuracy_difference(right, ~right)
    assert about_groups(right, pairs) == about_groups(right, None) == ""


def test_an_evaluation_is_as_sure_as_its_groups_let_it_be() -> None:
    rng = np.random.default_rng(1)
    right, groups = grouped_rights(rng)
    labels = rng.integers(0, 3, size=len(right))
    answers = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
    alone, together = (evaluate(labels, answers, "abc", groups=of) for of in (None, groups))
    for wide, narrow in (
        (together.accuracy_wilson, alone.accuracy_wilson),
        (together.accuracy_bootstrap, alone.accuracy_bootstrap),
        (together.balanced_accuracy_interval, alone.balanced_accuracy_interval),
        (together.macro_f1_interval, alone.macro_f1_interval),
    ):
        assert wide[1] - wide[0] > 1.2 * (narrow[1] - narrow[0])
    assert together.accuracy == alone.accuracy
    assert "of 30 groups, and tell as much" in together.notes[0]
    assert together.row(0)[0]["group"] == "0"


def test_one_group_tells_as_much_as_one_image() -> None:
    right = np.array([True, True, False, True])
    assert independent_images(right, np.zeros(4, dtype=int)) == 1
    assert share_interval(right, np.zeros(4, dtype=int)) == pytest.approx(
        wilson_interval(0.75, 1), abs=1e-12
    )
