"""What a page opens with: every count is that of a figure, every advice has its rule."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.comparison import compare_all
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.label_evaluation import LabelEvaluation, evaluate_labels
from finetune.evaluation.result import Evaluation
from finetune.reporting.answer import Answer, answer_of, board_answer, least_sure
from finetune.reporting.details import ReportDetails
from finetune.reporting.triage import rank_suspects
from finetune.reporting.words import listed, share, words_of

NAMES = ("ant", "bee", "wasp")


def judged(counts: Mapping[tuple[int, int], int], sure: float = 0.9) -> Evaluation:
    """So many images of each label and prediction, all as sure."""
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    labels, answers = np.array(pairs).T
    probabilities = np.full((len(pairs), len(NAMES)), (1 - sure) / (len(NAMES) - 1))
    probabilities[np.arange(len(pairs)), answers] = sure
    return evaluate(labels, probabilities, NAMES)


def advice(answer: Answer) -> list[str]:
    return [each.do for each in answer.advice]


def said(answer: Answer) -> str:
    return " ".join(answer.sentences)


GOOD = {(0, 0): 200, (1, 1): 200, (2, 2): 200}
PAIRS = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(PAIRS, st.integers(1, 12), min_size=1))
def test_counts_in_the_words_are_those_of_the_confusion_matrix(
    counts: dict[tuple[int, int], int],
) -> None:
    evaluation = judged(counts)
    first, *others = words_of(evaluation).sentences
    assert first.startswith(
        f"{np.trace(evaluation.confusion)} of {evaluation.confusion.sum()} right"
    )
    told = [sentence for sentence in others if sentence.startswith("Most errors")]
    wrong = {pair: n for pair, n in counts.items() if pair[0] != pair[1] and n > 1}
    assert bool(told) == bool(wrong)
    for (label, answer), count in wrong.items():
        times = "twice" if count == 2 else f"{count} times"
        spoken = f"{NAMES[label]} taken for {NAMES[answer]} ({times})"
        assert spoken in told[0] or sum(n >= count for n in wrong.values()) > 3
    assert told == [] or told[0].count(" taken for ") == min(3, len(wrong))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_counts_of_several_labels_are_those_of_its_figures(seed: int) -> None:
    evaluation = random_labels(seed)
    first, *others = words_of(evaluation).sentences
    assert first.startswith(f"{evaluation.right.sum()} of 30 with all labels right")
    missed, added = evaluation.missed.sum(axis=0), evaluation.added.sum(axis=0)
    for counts, sentence in ((missed, "Most often missed"), (added, "Most often named")):
        told = [each for each in others if each.startswith(sentence)]
        assert bool(told) == bool(counts.max() > 1)
        if told:
            most = "twice" if counts.max() == 2 and counts is added else f"{counts.max()} "
            assert f"{NAMES[counts.argmax()]} ({most}" in told[0]


def random_labels(seed: int) -> LabelEvaluation:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (30, 3)).astype(float)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    return evaluate_labels(targets, rng.normal(size=(30, 3)) * 2, NAMES)


@given(st.floats(0, 1))
def test_a_share_is_all_or_nothing_only_where_it_is(value: float) -> None:
    shown = share(value)
    assert (shown == "100 %", shown == "0 %") == (value == 1, value == 0)
    assert abs(float(shown.removesuffix(" %")) - 100 * value) <= 0.5


def test_names_are_listed_as_people_do() -> None:
    assert [listed(list("abcde")[:n]) for n in (1, 2, 3, 5)] == [
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 2 more",
    ]


def test_a_faultless_answer_has_no_errors_to_tell_of_and_nothing_to_advise() -> None:
    answer = answer_of(judged(GOOD, sure=1.0), ReportDetails(stage="test"))
    assert answer.sentences[0] == "600 of 600 right (100 %, 99 to 100 %)."
    assert answer.advice == ()
    assert "Most errors" not in said(answer)
    assert str(answer).count("\n") == 0


RULES: dict[str, tuple[Evaluation, ReportDetails]] = {
    "finetune test": (judged(GOOD), ReportDetails(stage="val")),
    "Add images of bee and ant": (
        judged(GOOD),
        ReportDetails(class_counts={"train": {"ant": 9, "bee": 2, "wasp": 10}}),
    ),
    "tell ant from bee": (judged({**GOOD, (0, 1): 2, (1, 0): 2, (2, 0): 3}), ReportDetails()),
    "finetune calibrate": (
        judged({**GOOD, (0, 1): 60, (1, 2): 60, (2, 0): 60}, 0.97),
        ReportDetails(),
    ),
    "Test on more images": (judged({(0, 0): 9, (1, 1): 9}), ReportDetails()),
    "Add train images": (
        judged(GOOD),
        ReportDetails(learning_curves={"train/loss": [(1, 0.2)], "val/loss": [(1, 0.5)]}),
    ),
    "stronger backbone": (
        judged({**GOOD, (0, 1): 1, (1, 2): 1, (2, 0): 1}, 0.98),
        ReportDetails(stage="test"),
    ),
}
WITHOUT = {
    "finetune test": (judged(GOOD), ReportDetails(stage="val, out of fold")),
    "Add images of": (
        judged(GOOD),
        ReportDetails(class_counts={"train": dict.fromkeys(NAMES, 10)}),
    ),
    "tell": (judged({**GOOD, (0, 1): 2}), ReportDetails()),
    "calibrate": (judged({**GOOD, (0, 1): 60}, 0.91), ReportDetails()),
    "more images": (judged(GOOD), ReportDetails()),
    "Add train images": (
        judged(GOOD),
        ReportDetails(learning_curves={"train/loss": [(1, 0.2)], "val/loss": [(1, 0.4)]}),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_gives_its_advice_with_its_figures(rule: str) -> None:
    evaluation, details = RULES[rule]
    given = [each for each in answer_of(evaluation, details).advice if rule in each.do]
    assert len(given) == 1
    assert given[0].because


@pytest.mark.parametrize("rule", WITHOUT)
def test_a_rule_that_does_not_hold_says_nothing(rule: str) -> None:
    assert not [do for do in advice(answer_of(*WITHOUT[rule])) if rule in do]


def test_labels_look_wrong_only_where_the_answers_are_mostly_right() -> None:
    one_wrong = judged({(0, 0): 30, (1, 1): 30, (0, 1): 1})
    suspects = rank_suspects(one_wrong)
    answer = answer_of(one_wrong, ReportDetails(), suspects)
    assert "1 label looks wrong." in answer.sentences
    assert advice(answer)[0] == "Look at the image whose label may be wrong"
    confused = judged({(0, 0): 10, (1, 1): 30, (0, 1): 20})
    suspects = rank_suspects(confused)
    assert sum(suspect.suspected for suspect in suspects) == 20
    assert "wrong" not in said(answer_of(confused, ReportDetails(), suspects))


def test_an_image_unlike_all_others_is_told_of() -> None:
    features = np.ones((60, 4))
    features[7] = -1
    evaluation = judged({(0, 0): 30, (1, 1): 30})
    answer = answer_of(evaluation, ReportDetails(), rank_suspects(evaluation, embeddings=features))
    assert "1 image is unlike all others." in answer.sentences


def test_the_least_sure_are_less_than_half_as_sure_as_the_middle() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05]] * 9 + [[0.4, 0.3, 0.3]])
    evaluation = evaluate([0] * 10, probabilities, NAMES)
    assert least_sure(evaluation) == [9]
    assert (
        "1 image is much less sure than the rest."
        in answer_of(evaluation, ReportDetails()).sentences
    )
    assert least_sure(replace(evaluation, probabilities=probabilities[:9])) == []


def test_a_label_that_is_mostly_missed_asks_for_images_of_it() -> None:
    targets = np.tile([1.0, 1.0, 0.0], (20, 1))
    logits = np.tile([-3.0, 3.0, -3.0], (20, 1))
    answer = answer_of(evaluate_labels(targets, logits, NAMES), ReportDetails())
    assert "Add images that show ant" in advice(answer)
    assert answer.sentences[:2] == (
        "0 of 20 with all labels right (0 %).",
        "Most often missed: ant (20 of 20).",
    )


def test_a_board_names_the_first_and_who_is_as_good() -> None:
    good, same, poor = judged(GOOD), judged(GOOD), judged({(0, 1): 200, (1, 1): 200, (2, 2): 200})
    answer = board_answer(compare_all({"one": good, "two": same, "three": poor}))
    assert answer.sentences[1:] == ("Clearly worse: three.", "Not distinguishable from it: two.")
    assert "cheapest of one and two" in answer.advice[0].do
    assert board_answer(compare_all({"one": good, "three": poor})).advice == ()


def test_the_answer_is_plain_values_too() -> None:
    values: dict[str, Any] = answer_of(*RULES["finetune test"]).to_dict()
    assert values["sentences"][0].startswith("600 of 600 right")
    assert set(values["next"][0]) == {"do", "because"}
