"""Label triage against cleanlab, and on labels that were made wrong on purpose."""

import csv
from pathlib import Path

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from finetune.evaluation.evaluate import evaluate
from finetune.reporting.triage import (
    far_out,
    label_quality,
    rank_suspects,
    strangeness,
    write_suspects,
    wrong_labels,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(20, 80))
def test_equal_to_cleanlab(seed: int, n_classes: int, n_images: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(n_classes), rng.integers(0, n_classes, n_images - n_classes)]
    logits = rng.normal(size=(n_images, n_classes))
    logits[np.arange(n_images), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = find_label_issues(
        labels, probabilities, filter_by="confident_learning", n_jobs=1, min_examples_per_class=0
    )
    np.testing.assert_array_equal(wrong_labels(labels, probabilities), expected)
    scores = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    np.testing.assert_allclose(label_quality(labels, probabilities), scores)


def test_labels_made_wrong_are_found_first() -> None:
    features, truth = load_digits(return_X_y=True)
    features, truth = features[:600] / 16, truth[:600]
    rng = np.random.default_rng(0)
    spoiled = rng.choice(600, 15, replace=False)
    labels = truth.copy()
    labels[spoiled] = (truth[spoiled] + rng.integers(1, 10, 15)) % 10
    probabilities = cross_val_predict(
        LogisticRegression(), features, labels, cv=4, method="predict_proba"
    )
    evaluation = evaluate(labels, probabilities, [str(i) for i in range(10)])
    suspects = rank_suspects(evaluation)
    assert len(suspects) == 600
    first = suspects[:15]
    assert len({s.index for s in first} & set(spoiled)) >= 10
    assert all(s.suspected for s in first[:10])
    assert not suspects[-1].suspected
    right = [s.suggested == str(truth[s.index]) for s in first if s.index in spoiled]
    assert np.mean(right) > 0.9
    qualities = [s.quality for s in suspects if s.suspected]
    assert qualities == sorted(qualities)


def test_a_class_without_images_and_a_single_image_are_survived() -> None:
    evaluation = evaluate([0], [[0.2, 0.8, 0.0]], ["a", "b", "c"])
    (only,) = rank_suspects(evaluation)
    assert (only.suggested, only.suspected) == ("b", False)


def test_the_list_can_be_written(tmp_path: Path) -> None:
    evaluation = evaluate([0, 1], [[0.1, 0.9], [0.2, 0.8]], ['say "a"', "b"], ["x,1", "y"])
    write_suspects(tmp_path / "s.csv", rank_suspects(evaluation, limit=1))
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["path"], row["label"], row["suggested"]) == ("x,1", 'say "a"', "b")
    assert float(row["quality"]) == pytest.approx(0.1)


def test_an_image_of_no_class_is_found_by_its_features() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    embeddings = np.abs(rng.normal(size=(100, 32))) + np.eye(32)[labels] * 8
    embeddings[40] = np.abs(rng.normal(size=32)) + np.eye(32)[20] * 12  # like neither of the two
    probabilities = np.eye(2)[labels] * 0.8 + 0.1
    probabilities[40] = 0.99, 0.01  # answered as labelled: probabilities do not tell
    evaluation = evaluate(labels, probabilities, ["a", "b"])
    suspects = rank_suspects(evaluation, embeddings=embeddings)
    assert len({s.index for s in suspects}) == len(suspects) == 100
    found = next(s for s in suspects[:2] if s.reason == "no class")
    assert (found.index, found.suggested, found.suspected) == (40, "", True)
    assert sum(s.suspected for s in suspects) == 1


def test_images_that_are_all_alike_are_not_strange() -> None:
    assert not far_out(strangeness(np.ones((20, 4)))).any()
    assert strangeness(np.ones((1, 4))).tolist() == [0]


def test_an_image_that_only_its_answers_suspect_stays_suspected_beside_features() -> None:
    features = np.random.default_rng(0).normal(size=(40, 8)) + 4
    strange = strangeness(features)
    strangest = int(np.where(far_out(strange), 0, strange).argmax())  # of those that are not far
    labels = np.arange(40) % 2
    probabilities = np.eye(2)[labels] * 0.8 + 0.1
    suspected = [strangest, *(i for i in range(5) if i != strangest)]
    for place, index in enumerate(suspected):  # the answers name the strangest image last
        probabilities[index] = np.roll([0.8 + place / 100, 0.2 - place / 100], labels[index] + 1)
    evaluation = evaluate(labels, probabilities, ["a", "b"])
    suspects = rank_suspects(evaluation, embeddings=features)
    by_answers = {s.index for s in suspects if s.suspected and s.reason == "another class"}
    assert by_answers >= set(suspected)
