"""Paired comparisons against brute force and against what they promise."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import UsageError
from finetune.evaluation.comparison import (
    PairedComparison,
    compare_all,
    compare_pair,
    holm_correction,
)
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.judgement import Score
from finetune.evaluation.number_evaluation import evaluate_numbers
from finetune.evaluation.paired import (
    accuracy_difference,
    mcnemar_p_value,
    resampled_difference,
)
from finetune.evaluation.result import Evaluation


def answers(correct: np.ndarray, paths: list[str] | None = None) -> Evaluation:
    labels = np.arange(len(correct)) % 2
    predictions = np.where(correct, labels, 1 - labels)
    return evaluate(labels, np.eye(2)[predictions], ["a", "b"], paths)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 1), (4, 4), (2, 9)])
def test_mcnemar_is_the_test_over_all_sign_flips(first: int, second: int) -> None:
    observed = abs(first - second)
    flips = [abs(sum(signs)) for signs in product([-1, 1], repeat=first + second)]
    share = np.mean([flip >= observed for flip in flips])
    assert mcnemar_p_value(first, second) == pytest.approx(share)


def test_only_answers_to_the_same_images_differ() -> None:
    right = np.array([True])
    found = accuracy_difference(right, ~right)
    assert (found.value, found.interval, found.p_value) == (1.0, (1.0, 1.0), 1.0)
    first, second = np.arange(40) % 3 > 0, np.arange(40) % 4 > 0
    low, high = accuracy_difference(first, second).interval
    inner = accuracy_difference(first, second, confidence_level=0.5).interval
    assert low < inner[0] < inner[1] < high
    for first, second in ((right, np.array([True, False])), (right[:0], right[:0])):
        with pytest.raises(UsageError, match=f"found {len(first)} and {len(second)}"):
            accuracy_difference(first, second)


@pytest.mark.parametrize(
    ("lead", "p_value"), [(0, 0.002), (9, 0.02), (499, 1.0), (990, 0.02), (999, 0.002)]
)
def test_a_bootstrap_doubts_by_the_resamples_in_which_the_other_one_leads(
    lead: int, p_value: float
) -> None:
    """Of 999 resamples the first is ahead in so many by 2, behind in the others by 1."""
    apart = np.array([2.0] * lead + [-1.0] * (999 - lead))
    rights = (
        np.array([True, True, True, False, False]),
        np.array([True, False, False, True, False]),
    )
    found = resampled_difference((0.7, 0.4), (apart + 5, np.full(999, 5.0)), rights)
    assert found.p_value == pytest.approx(p_value)
    assert found.value == pytest.approx(0.3)
    assert (found.first_only, found.second_only) == (2, 1)
    assert found.interval == tuple(np.quantile(apart, [0.025, 0.975]))
    narrow = resampled_difference((0, 0), (apart, 0 * apart), rights, confidence_level=0.5)
    assert narrow.interval == tuple(np.quantile(apart, [0.25, 0.75]))


def test_a_resample_without_a_leader_counts_for_both() -> None:
    rights = (np.array([True]), np.array([True]))
    found = resampled_difference((1, 1), (np.array([0.0, 1, 1]), np.zeros(3)), rights)
    assert found.p_value == 1.0
    found = resampled_difference((1, 1), (np.array([0.0] + [1] * 18), np.zeros(19)), rights)
    assert found.p_value == pytest.approx(2 * 2 / 20)


def test_holm_by_hand() -> None:
    # Holm: smallest times 4, next times 3, ...; never below the one before.
    assert holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_correction([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_helps(p_values: list[float]) -> None:
    adjusted = holm_correction(p_values)
    order = np.argsort(p_values, kind="stable")
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert min(adjusted) == pytest.approx(min(1, min(p_values) * len(p_values)))


def test_a_clear_difference_is_told_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    good, poor = rng.random(300) < 0.95, rng.random(300) < 0.7
    pair = compare_pair(("good", answers(good)), ("poor", answers(poor)))
    assert pair.is_real()
    low, high = pair.interval
    assert 0 < low < pair.difference < high
    assert (pair.images, pair.figure.name) == (300, "accuracy")
    assert (pair.first_only, pair.second_only) == ((good & ~poor).sum(), (poor & ~good).sum())
    assert pair.verdict().startswith("good is better than poor by ")
    turned = compare_pair(("poor", answers(poor)), ("good", answers(good)))
    assert turned.difference == -pair.difference
    assert turned.verdict().split("[")[0] == pair.verdict().split("[")[0]


def test_twins_cannot_be_told_apart() -> None:
    correct = np.array([True, False, True])
    pair = compare_pair(("a", answers(correct)), ("b", answers(correct)))
    assert pair.p_value == 1
    assert not pair.is_real()
    assert "not distinguishable" in pair.verdict()


ACCURACY, MAP = Score("accuracy", 0.9), Score("mAP", 0.9)
ERROR = Score("MAE", 2.0, kind="amount", rises=False)


@pytest.mark.parametrize(
    ("figure", "difference", "interval", "p_value", "verdict"),
    [
        (ACCURACY, 0.0523, (0.0101, 0.095), 0.01, "a is better than b by 5.2 points [1.0, 9.5]."),
        (ACCURACY, -0.0523, (-0.095, -0.0101), 0.0, "b is better than a by 5.2 points [1.0, 9.5]."),
        (MAP, 0.1, (0.05, 0.15), 0.0499, "a is better than b by 10.0 points of mAP [5.0, 15.0]."),
        (ERROR, 1.23456, (0.5, 2), 0.01, "b is better than a by 1.235 of MAE [0.5, 2]."),
        (ERROR, -1.23456, (-2, -0.5), 0.01, "a is better than b by 1.235 of MAE [0.5, 2]."),
        (
            ACCURACY, 0.01, (-0.02, 0.04), 0.05,
            "a and b are not distinguishable: 1.0 points [-2.0, 4.0] apart.",
        ),
        (
            ACCURACY, -0.01, (-0.04, 0.02), 0.5,
            "a and b are not distinguishable: 1.0 points [-2.0, 4.0] apart.",
        ),
        (
            ACCURACY, 0.0, (-0.01, 0.03), 1.0,
            "a and b are not distinguishable: 0.0 points [-1.0, 3.0] apart.",
        ),
    ],
)  # fmt: skip
def test_a_verdict_names_the_better_one_how_much_and_how_surely(
    figure: Score, difference: float, interval: tuple[float, float], p_value: float, verdict: str
) -> None:
    pair = PairedComparison("a", "b", 100, 0, 0, difference, interval, p_value / 2, p_value, figure)
    assert pair.verdict() == verdict
    assert pair.is_real() == (p_value < 0.05) == ("better" in verdict)


def test_chance_alone_is_rarely_called_real() -> None:
    rng = np.random.default_rng(1)
    called = [
        accuracy_difference(rng.random(80) < 0.8, rng.random(80) < 0.8).p_value < 0.05
        for _ in range(300)
    ]
    assert np.mean(called) <= 0.06


def test_leaderboard_is_ranked_corrected_and_matched_by_path() -> None:
    rng = np.random.default_rng(2)
    paths = [f"{i}.jpg" for i in range(200)]
    correct = {name: rng.random(200) < rate for name, rate in [("x", 0.6), ("y", 0.9), ("z", 0.88)]}
    evaluations = {name: answers(c, paths) for name, c in correct.items()}
    shuffled = [*reversed(range(200))]
    evaluations["z"] = evaluate(
        evaluations["z"].labels[shuffled],
        evaluations["z"].probabilities[shuffled],
        ["a", "b"],
        [paths[i] for i in shuffled],
    )
    board = compare_all(evaluations)
    assert next(reversed(board.evaluations)) == "x"
    assert board.as_good_as_the_best == {"y", "z"}
    assert board.left_out == 0
    p_values = [pair.p_value for pair in board.pairs]
    assert [pair.adjusted_p_value for pair in board.pairs] == holm_correction(p_values) != p_values
    for pair in board.pairs:
        expected = correct[pair.first].mean() - correct[pair.second].mean()
        assert pair.difference == pytest.approx(expected)
        assert pair.adjusted_p_value >= pair.p_value


def test_the_leading_figure_alone_ranks() -> None:
    """One is right more often, the other more evenly over the classes."""
    labels = np.array([0] * 8 + [1] * 2)
    often, evenly = np.zeros(10, int), np.array([0] * 5 + [1] * 5)
    board = compare_all(
        {
            name: evaluate(labels, np.eye(2)[given], ["a", "b"])
            for name, given in (("evenly", evenly), ("often", often))
        }
    )
    first, second = board.evaluations.values()
    assert [*board.evaluations] == ["often", "evenly"]
    assert first.leading[1].value < second.leading[1].value


@pytest.mark.parametrize("names", [["b", "a"], ["b", "a", "c"]])
def test_labels_are_matched_by_name_whatever_else_there_is(names: list[str]) -> None:
    correct = np.array([True, True, False, True])
    own = np.array([1, 0, 1, 0])  # 0, 1, 0, 1 of "a" and "b"
    given = np.eye(len(names))[np.where(correct, own, 1 - own)]
    others = evaluate(own, given, names)
    board = compare_all({"one": answers(correct), "other": others})
    assert [pair.difference for pair in board.pairs] == [0]
    assert (board.pairs[0].first_only, board.pairs[0].second_only) == (0, 0)


def test_answers_of_two_tasks_are_refused() -> None:
    numbers = evaluate_numbers(np.zeros((2, 1)), np.ones((2, 1)))
    with pytest.raises(UsageError, match="found multiclass and regression"):
        compare_all({"a": answers(np.array([True, True])), "b": numbers})


def test_images_that_one_side_lacks_are_left_out_and_counted() -> None:
    a = answers(np.array([True, True, False]), ["1", "2", "3"])
    b = answers(np.array([True, True]), ["1", "2"])
    board = compare_all({"a": a, "b": b})
    assert board.left_out == 1
    assert board.evaluations["a"].paths == ("1", "2")


def test_predictions_that_do_not_belong_together_are_refused() -> None:
    a = answers(np.array([True, True]), ["1", "2"])
    with pytest.raises(UsageError, match="at least two"):
        compare_all({"a": a})
    with pytest.raises(UsageError, match="none in common"):
        compare_all({"a": a, "b": answers(np.array([True]), ["9"])})
    with pytest.raises(UsageError, match="once in b, found some paths twice"):
        compare_all({"a": a, "b": answers(np.array([True, True]), ["1", "1"])})
    other = evaluate([1, 1], np.eye(2)[[1, 1]], ["a", "b"], ["1", "2"])
    with pytest.raises(UsageError, match="one label for 1"):
        compare_all({"a": a, "b": other})
    with pytest.raises(UsageError, match="same images"):
        compare_pair(("a", a), ("b", answers(np.array([True]))))
