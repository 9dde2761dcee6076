"""The evaluation's figures against scikit-learn's and torchmetrics', and at the edges."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.errors import UsageError
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.result import Evaluation
from finetune.evaluation.scores import risk_coverage
from finetune.tasks.class_scores import confidence_bins, label_ranks


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities: coarse values, so that ties, 0 and 1 occur; classes may lack."""
    n_classes = draw(st.integers(2, 6))
    n_images = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, draw(st.sampled_from([2, 5, 1000])), size=(n_images, n_classes))
    raw[raw.sum(axis=1) == 0, rng.integers(n_classes)] = 1
    used = rng.integers(1, n_classes + 1)
    return rng.integers(0, used, size=n_images), raw / raw.sum(axis=1, keepdims=True)


def names(probabilities: np.ndarray) -> list[str]:
    return [f"class {i}" for i in range(probabilities.shape[1])]


@settings(max_examples=100, deadline=None)
@given(answers())
def test_figures_equal_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = drawn
    evaluation = evaluate(labels, probabilities, names(probabilities))
    predictions = evaluation.predictions
    classes = np.arange(probabilities.shape[1])
    present = np.unique(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of predicted classes without image
        balanced = metrics.balanced_accuracy_score(labels, predictions)
    assert evaluation.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert evaluation.balanced_accuracy == pytest.approx(balanced)
    assert evaluation.macro_f1 == pytest.approx(
        metrics.f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    )
    if probabilities[np.arange(len(labels)), labels].min() > 0:  # scikit-learn clips
        expected = metrics.log_loss(labels, probabilities, labels=classes)
        assert evaluation.nll == pytest.approx(expected)
    one_hot = np.eye(len(classes))[labels]
    assert evaluation.brier == pytest.approx(((probabilities - one_hot) ** 2).sum(1).mean())
    np.testing.assert_array_equal(
        evaluation.confusion, metrics.confusion_matrix(labels, predictions, labels=classes)
    )


@settings(max_examples=60, deadline=None)
@given(answers())
def test_per_class_figures_equal_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = drawn
    evaluation = evaluate(labels, probabilities, names(probabilities))
    report = metrics.classification_report(
        labels,
        evaluation.predictions,
        labels=np.arange(probabilities.shape[1]),
        target_names=names(probabilities),
        output_dict=True,
        zero_division=np.nan,
    )
    for index, scores in enumerate(evaluation.per_class):
        expected = report[scores.name]
        assert scores.support == expected["support"]
        assert scores.precision == pytest.approx(expected["precision"], nan_ok=True)
        assert scores.recall == pytest.approx(expected["recall"], nan_ok=True)
        assert scores.f1 == pytest.approx(expected["f1-score"], nan_ok=True)
        low, high = scores.recall_interval
        assert math.isnan(scores.recall) or low <= scores.recall <= high
        positive = labels == index
        if positive.any() and not positive.all():
            area = metrics.roc_auc_score(positive, probabilities[:, index])
            assert scores.auroc == pytest.approx(area)
        else:
            assert math.isnan(scores.auroc)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_calibration_error_equals_torchmetrics(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = drawn
    # torchmetrics takes "1 everywhere" for logits, and lays float32 edges: stay away from both.
    probabilities = probabilities * 0.98 + 0.02 / probabilities.shape[1]
    confidence = probabilities.max(axis=1)
    edges = np.linspace(0, 1, 16)
    if np.abs(confidence[:, None] - edges).min() < 1e-5:
        return
    reference = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), probabilities.shape[1], n_bins=15
    )
    evaluation = evaluate(labels, probabilities, names(probabilities))
    assert evaluation.calibration_error == pytest.approx(float(reference), abs=1e-6)
    assert evaluation.calibration.counts.sum() == len(labels)


def test_top_k_equals_scikit_learn_where_nothing_ties() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(8), size=100)
    labels = rng.integers(0, 8, size=100)
    evaluation = evaluate(labels, probabilities, names(probabilities))
    assert set(evaluation.top_k) == {2, 3, 5}
    for k, share in evaluation.top_k.items():
        reference = metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=np.arange(8))
        assert share == pytest.approx(reference)


@settings(deadline=None)
@given(answers())
def test_rank_zero_is_the_prediction_also_among_ties(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = drawn
    ranks = label_ranks(labels, probabilities)
    np.testing.assert_array_equal(ranks == 0, probabilities.argmax(axis=1) == labels)


@settings(deadline=None)
@given(answers(), st.integers(0, 100))
def test_coverage_risk_does_not_depend_on_the_order(
    drawn: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    labels, probabilities = drawn
    confidences, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    order = np.random.default_rng(seed).permutation(len(labels))
    coverage, risk = risk_coverage(confidences, wrong)
    np.testing.assert_allclose(risk, risk_coverage(confidences[order], wrong[order])[1])
    assert risk[-1] == pytest.approx(wrong.mean())
    assert coverage[-1] == 1


def test_coverage_risk_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.9, 0.6, 0.8]), np.array([False, True, False]))
    np.testing.assert_allclose(coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3])


@settings(max_examples=60, deadline=None)
@given(answers())
def test_intervals_hold_their_figure_and_json_holds_no_nan(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, probabilities = drawn
    evaluation = evaluate(labels, probabilities, names(probabilities))
    low, high = evaluation.accuracy_wilson
    assert 0 <= low <= evaluation.accuracy <= high <= 1
    low, high = evaluation.accuracy_bootstrap
    assert low - 1e-9 <= evaluation.accuracy <= high + 1e-9
    values = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert values["images"] == len(labels)


def perfect(n_images: int = 12) -> Evaluation:
    labels = np.arange(n_images) % 3
    return evaluate(labels, np.eye(3)[labels], ["a", "b", "c"])


def test_probabilities_of_exactly_zero_and_one() -> None:
    evaluation = perfect()
    assert evaluation.accuracy == 1
    assert evaluation.nll == pytest.approx(0, abs=1e-12)
    assert evaluation.confused_pairs() == ()
    wrong = evaluate([1], [[1.0, 0.0]], ["a", "b"])
    assert wrong.nll == pytest.approx(-math.log(5e-324))


def test_one_image_is_enough() -> None:
    evaluation = evaluate([1], [[0.2, 0.8]], ["a", "b"], ["x.jpg"])
    assert evaluation.accuracy == 1
    assert evaluation.accuracy_wilson[0] < 0.25
    assert math.isnan(evaluation.macro_auroc)
    assert evaluation.classes_with_few_images == ("a", "b")


def test_an_absent_class_neither_lowers_nor_raises_the_means() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    two = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4]])
    three = np.hstack([two, np.zeros((6, 1))])
    without = evaluate(labels, two, ["a", "b"])
    absent = evaluate(labels, three, ["a", "b", "c"])
    assert absent.balanced_accuracy == without.balanced_accuracy
    assert absent.macro_f1 == without.macro_f1
    assert absent.macro_auroc == without.macro_auroc
    assert absent.per_class[2].to_dict()["recall"] is None


def test_confused_pairs_are_counted_by_direction() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2])
    predictions = np.array([1, 1, 2, 0, 0, 2])
    evaluation = evaluate(labels, np.eye(3)[predictions], ["a", "b", "c"])
    first = evaluation.confused_pairs()[0]
    assert (first.label, first.prediction, first.count, first.share) == ("a", "b", 2, 0.5)
    assert [pair.count for pair in evaluation.confused_pairs()] == [2, 1, 1]


def test_folds_give_mean_and_deviation() -> None:
    evaluation = evaluate(
        [0, 0, 1, 1], np.eye(2)[[0, 0, 1, 0]], ["a", "b"], folds=[0, 0, 1, 1], seed=3
    )
    assert evaluation.fold_accuracies == (1.0, 0.5)
    folds = evaluation.to_dict()["folds"]
    assert folds["mean"] == 0.75
    assert folds["standard_deviation"] == pytest.approx(np.std([1, 0.5], ddof=1))


@pytest.mark.parametrize(
    ("labels", "probabilities", "class_names", "message"),
    [
        ([0], [[0.5, 0.5]], ["a"], "two classes"),
        ([0, 1], [[0.5, 0.5]], ["a", "b"], "one label"),
        ([], np.zeros((0, 2)), ["a", "b"], "at least one row"),
        ([2], [[0.5, 0.5]], ["a", "b"], "from 0 to 1"),
        ([-1], [[0.5, 0.5]], ["a", "b"], "from 0 to 1"),
        ([0], [[3.0, -2.0]], ["a", "b"], "evaluate_logits"),
        ([0], [[math.nan, 1.0]], ["a", "b"], "sum to 1"),
    ],
)
def test_nonsense_is_refused(
    labels: list[int], probabilities: list, class_names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(labels, probabilities, class_names)


def test_a_bin_holds_its_upper_edge() -> None:
    bins = confidence_bins(np.array([0.5, 1.0, 0.0]), np.array([True, True, False]), 2)
    assert bins.counts.tolist() == [2, 1]
