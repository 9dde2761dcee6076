import math

import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import oas
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from finetune.combining.strangeness import (
    MOST_ROWS,
    NEAREST,
    SCORES,
    class_means,
    doubt,
    near_images,
)
from finetune.combining.unknown import UnknownRule, chosen_by_left_out, fit_unknown
from finetune.errors import CalibrationError, CheckpointMismatchError
from finetune.training.linear_probe import fit_probe


def clusters(
    seed: int, *, classes: int = 4, images: int = 30, width: int = 12, far: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Features ``(N, D)`` around one centre a class, which is the same for all seeds."""
    centres = far * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat_interleave(images)
    generator = torch.Generator().manual_seed(seed)
    return centres[labels] + torch.randn(len(labels), width, generator=generator), labels


@pytest.mark.parametrize(("images", "width"), [(40, 6), (5, 50)])
def test_mahalanobis_is_that_of_scipy_with_the_covariance_of_scikit_learn(
    images: int, width: int
) -> None:
    features, labels = clusters(0, images=images, width=width)
    others, _ = clusters(1, images=7, width=width, far=1.0)
    unit, unit_others = (
        x.double().numpy() / x.double().norm(dim=1, keepdim=True).numpy()
        for x in (features, others)
    )
    means = torch.stack([torch.from_numpy(unit)[labels == c].mean(0) for c in range(4)]).numpy()
    covariance, _ = oas(unit - means[labels], assume_centered=True)
    precision = torch.linalg.inv(torch.from_numpy(covariance)).numpy()
    expected = cdist(unit_others, means, "mahalanobis", VI=precision).min(axis=1)
    found = class_means(features, labels).distances(others)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_neighbours_are_those_of_scikit_learn() -> None:
    (features, labels), (others, _) = clusters(0), clusters(1)
    judge = NearestNeighbors(n_neighbors=NEAREST, metric="cosine").fit(features.numpy())
    expected = torch.from_numpy(judge.kneighbors(others.numpy())[0][:, -1]).double()
    found = near_images(features, labels).distances(others)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_doubt_is_that_of_the_probe() -> None:
    (features, labels), (others, _) = clusters(0), clusters(1)
    probe = fit_probe(features, labels, 4)
    logits = others.double() @ probe.weight.T + probe.bias
    expected = -logits.softmax(dim=1).amax(dim=1).log()
    found = doubt(features, labels + 7).distances(others)  # whatever the classes are called
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_of_two_classes_only_distances_can_be_compared() -> None:
    assert set(chosen_by_left_out(*clusters(0, classes=2))) == {"mahalanobis", "neighbours"}
    assert set(chosen_by_left_out(*clusters(0, classes=3))) == set(SCORES)


def test_what_is_kept_of_many_images_is_bounded_and_of_every_class() -> None:
    features, labels = clusters(0, classes=3, images=2000, width=3)
    assert len(near_images(features, labels).rows) == MOST_ROWS
    assert len(near_images(features[:10], labels[:10]).rows) == 10


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_are_as_rare_as_promised_over_many_draws(alpha: float) -> None:
    """The mean rate lies between alpha - 1 / (n + 1) and alpha, whatever the score."""
    train, labels = clusters(0)
    rates, images = [], 39
    for seed in range(1, 200):
        known, _ = clusters(seed, images=60)
        known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
        familiar = near_images(train, labels)
        threshold = familiar.distances(known[:images]).sort().values
        rank = math.ceil(round((images + 1) * (1 - alpha), 9))
        rule = UnknownRule(familiar, alpha, float(threshold[rank - 1]), images, (1, 1, 1))
        rates.append(float((rule.strangeness(known[images:]) > 1).double().mean()))
    error = 3 * torch.tensor(rates).std() / math.sqrt(len(rates))
    mean = sum(rates) / len(rates)
    assert alpha - 1 / (images + 1) - error <= mean <= alpha + error
    low, high = rule.false_alarms
    inside = sum(low - 0.02 <= rate <= high + 0.02 for rate in rates) / len(rates)
    assert inside > 0.9
    judged = len(known) - images
    drifted = [rule.drift_p_value(round(rate * judged), judged) <= 0.05 for rate in rates]
    assert sum(drifted) / len(drifted) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(drifted))
    assert rule.drift_p_value(0, judged) == 1
    assert rule.drift_p_value(judged, judged) < 1e-6


def test_the_threshold_is_the_conformal_one_and_strangers_are_told() -> None:
    (train, labels), (held_out, _) = clusters(0), clusters(1)
    rule = fit_unknown(train, labels, held_out, alpha=0.05)
    distances = rule.familiar.distances(held_out).sort().values
    assert rule.threshold == float(distances[math.ceil(121 * 0.95) - 1])
    assert int((rule.strangeness(held_out) > 1).sum()) == 120 - math.ceil(121 * 0.95)
    strangers = 3 * torch.randn(200, 12, generator=torch.Generator().manual_seed(5))
    assert float((rule.strangeness(strangers) > 1).double().mean()) > 0.5
    estimate, low, high = rule.auroc
    assert 0.8 < low < estimate <= high <= 1


def test_the_score_is_the_better_one_for_classes_that_were_left_out() -> None:
    train, labels = clusters(0)
    both = chosen_by_left_out(train, labels)
    rule = fit_unknown(train, labels, clusters(1)[0], alpha=0.1)
    assert rule.auroc == max(both.values(), key=lambda found: found[0])
    assert both[rule.familiar.score] == rule.auroc


def test_of_several_labels_each_label_is_left_out() -> None:
    """An image's features are the sum of its labels' centres, so sets of labels are many."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(7, 12, generator=generator)
    having = torch.rand(240, 6, generator=generator) < 0.35
    features = having.float() @ centres[:6] + torch.randn(240, 12, generator=generator)
    sets = torch.unique(having, dim=0, return_inverse=True)[1]
    tried = chosen_by_left_out(features[:120], sets[:120], having[:120])
    assert set(tried) == {"mahalanobis", "neighbours"}
    rule = fit_unknown(
        features[:120], sets[:120], features[120:200], alpha=0.1, having=having[:120]
    )
    assert rule.auroc == max(tried.values(), key=lambda found: found[0])
    assert rule.auroc[0] > 0.6
    known = (rule.strangeness(features[200:]) > 1).double().mean()
    strange = (rule.strangeness(features[200:] + 2 * centres[6]) > 1).double().mean()
    assert float(known) < 0.3 < float(strange)


def test_of_numbers_nothing_is_left_out() -> None:
    (train, _), (held_out, _) = clusters(0), clusters(1)
    nothing = torch.zeros(len(train), 0).bool()
    rule = fit_unknown(train, torch.arange(len(train)), held_out, alpha=0.1, having=nothing)
    assert (rule.familiar.score, rule.auroc) == ("neighbours", None)
    again = UnknownRule.from_entry(rule.to_entry())
    assert again is not None
    assert again.auroc is None
    assert torch.equal(again.strangeness(held_out), rule.strangeness(held_out))


def test_kept_values_answer_alike() -> None:
    rule = fit_unknown(*clusters(0), clusters(1)[0], alpha=0.1)
    again = UnknownRule.from_entry(rule.to_entry())
    assert again is not None
    others, _ = clusters(2)
    assert torch.equal(again.strangeness(others), rule.strangeness(others))
    assert UnknownRule.from_entry(None) is None
    with pytest.raises(CheckpointMismatchError, match="12 features"):
        rule.strangeness(others[:, :5])


def test_what_cannot_be_promised_is_refused() -> None:
    (train, labels), (held_out, _) = clusters(0), clusters(1)
    with pytest.raises(CalibrationError, match="at least 19 images"):
        fit_unknown(train, labels, held_out[:18], alpha=0.05)
    assert math.isfinite(fit_unknown(train, labels, held_out[:19], alpha=0.05).threshold)
    with pytest.raises(CalibrationError, match=r"\(0, 1\)"):
        fit_unknown(train, labels, held_out, alpha=1.5)
    with pytest.raises(CalibrationError, match="two classes"):
        fit_unknown(train[:9], labels[:9], held_out, alpha=0.1)
    with pytest.raises(CalibrationError, match="NaN"):
        fit_unknown(train * math.nan, labels, held_out, alpha=0.1)
