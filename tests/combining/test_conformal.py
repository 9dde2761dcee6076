import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.combining.conformal import (
    ConformalRule,
    Score,
    conformal_quantile,
    conformal_scores,
    fit_conformal,
)
from finetune.errors import CalibrationError

SCORES: list[Score] = ["thr", "aps", "raps"]


def simulated(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Over-confident probabilities of 6 classes, and labels from the honest ones."""
    honest = 1.5 * torch.randn(images, 6, generator=generator)
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    return (2 * honest).softmax(-1), labels


@pytest.mark.parametrize("images", [20, 50, 99])
@pytest.mark.parametrize("score", SCORES)
def test_mean_coverage_is_within_its_proven_interval(images: int, score: Score) -> None:
    generator = torch.Generator().manual_seed(images)
    alpha, found = 0.1, []
    for _ in range(400):
        rule = fit_conformal(*simulated(images, generator), alpha=alpha, score=score)
        probabilities, labels = simulated(200, generator)
        found.append(float(rule.sets(probabilities).gather(-1, labels[:, None]).double().mean()))
    mean = sum(found) / len(found)
    error = 4 * torch.tensor(found).std().item() / math.sqrt(len(found))
    assert 1 - alpha - error <= mean <= 1 - alpha + 1 / (images + 1) + error


@given(count=st.integers(1, 60), alpha=st.floats(0.02, 0.98))
@settings(max_examples=100, deadline=None)
def test_quantile_is_the_order_statistic_with_the_finite_sample_term(
    count: int, alpha: float
) -> None:
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(count)) + 1
    rank = math.ceil(round((count + 1) * (1 - alpha), 9))
    assert conformal_quantile(scores, alpha) == (math.inf if rank > count else rank)


def test_quantile_is_exact_where_floating_point_is_not() -> None:
    assert conformal_quantile(torch.arange(1, 10), 0.1) == 9  # (9 + 1) * 0.9 is 9


def test_too_few_images_give_every_class() -> None:
    probabilities, labels = simulated(8, torch.Generator().manual_seed(0))
    rule = fit_conformal(probabilities, labels, alpha=0.1)
    assert rule.threshold == math.inf
    assert bool(rule.sets(probabilities).all())


@pytest.mark.parametrize("score", SCORES)
def test_sets_are_scored_as_the_threshold_was(score: Score) -> None:
    probabilities, labels = simulated(20, torch.Generator().manual_seed(7))
    scores = conformal_scores(probabilities, score, penalty=0.01, free_classes=2)
    true = sorted(scores[torch.arange(20), labels].tolist())
    rule = fit_conformal(probabilities, labels, alpha=0.3, score=score)
    assert rule == ConformalRule(
        score, 0.3, true[14], 20, penalty=0.01, free_classes=2, always_top=False, of_labels=False
    )
    assert torch.equal(rule.sets(probabilities), scores <= true[14])  # 0.7 of 20 + 1: 15
    other = replace(rule, penalty=0.2, free_classes=0)
    expected = conformal_scores(probabilities, score, penalty=0.2, free_classes=0) <= true[14]
    assert torch.equal(other.sets(probabilities), expected)


def test_a_tenth_is_missed_by_the_smallest_sets_unless_asked_otherwise() -> None:
    probabilities, labels = simulated(40, torch.Generator().manual_seed(8))
    asked = fit_conformal(probabilities, labels, alpha=0.1, score="thr")
    assert fit_conformal(probabilities, labels) == asked


@pytest.mark.parametrize("score", SCORES)
def test_sets_are_nested_in_alpha(score: Score) -> None:
    generator = torch.Generator().manual_seed(3)
    probabilities, labels = simulated(60, generator)
    new, _ = simulated(100, generator)
    sets = [
        fit_conformal(probabilities, labels, alpha=alpha, score=score).sets(new)
        for alpha in (0.05, 0.1, 0.3, 0.6)
    ]
    for larger, smaller in itertools.pairwise(sets):
        assert bool((larger | ~smaller).all())


@pytest.mark.parametrize("score", SCORES)
def test_likelier_classes_enter_first(score: Score) -> None:
    probabilities, _ = simulated(50, torch.Generator().manual_seed(4))
    scores = conformal_scores(probabilities, score)
    order = probabilities.argsort(-1, descending=True)
    assert bool((scores.gather(-1, order).diff(dim=-1) >= 0).all())


def test_scores_by_hand() -> None:
    probabilities = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    expected = {
        "thr": [[0.8, 0.5, 0.7]],
        "aps": [[1.0, 0.5, 0.8]],
        "raps": [[1.0 + 0.1 * 2, 0.5, 0.8 + 0.1]],
    }
    for score in SCORES:
        found = conformal_scores(probabilities, score, penalty=0.1, free_classes=1)
        torch.testing.assert_close(found, torch.tensor(expected[score], dtype=torch.float64))


def test_the_top_class_is_forced_in_only_on_request() -> None:
    probabilities = torch.tensor([[0.4, 0.35, 0.25]])
    strict = ConformalRule(score="thr", alpha=0.5, threshold=0.1, images=10)
    assert not bool(strict.sets(probabilities).any())
    forced = replace(strict, always_top=True)
    assert forced.sets(probabilities).tolist() == [[True, False, False]]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(CalibrationError, match="alpha in"):
        conformal_quantile(torch.rand(5), alpha)


def test_no_images_are_refused() -> None:
    for rows, labels in ((0, 0), (3, 2), (2, 3)):
        with pytest.raises(CalibrationError, match=f"found {rows} rows for {labels} labels"):
            fit_conformal(torch.zeros(rows, 3), torch.zeros(labels).long())
