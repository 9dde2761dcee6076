"""The final layer of several labels an image: each label's optimum is scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from finetune.errors import TrainingError
from finetune.tasks.multilabel import MULTILABEL
from finetune.training.label_probe import fit_label_probe
from finetune.training.probe_rows import mixed_spreads

NAN = float("nan")


def features_and_targets(images: int = 120, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, width, generator=generator, dtype=torch.float64)
    features *= torch.linspace(0.5, 3, width)
    weight = torch.randn(width, 3, generator=generator, dtype=torch.float64)
    noise = 3 * torch.randn(images, 3, generator=generator, dtype=torch.float64)
    targets = (features @ weight + noise > 1).float()
    targets[torch.rand(images, 3, generator=generator) < 0.15] = NAN
    return features, targets


@pytest.mark.parametrize("width", [12, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_label_is_scikit_learns_optimum(width: int, weighted: bool) -> None:
    features, targets = features_and_targets(width=width)
    weights = torch.linspace(0.2, 2, len(features)) if weighted else None
    probe = fit_label_probe(features, targets, 3, l2=2.0, sample_weights=weights)
    rows = ((features - features.mean(dim=0)) / mixed_spreads(features)).numpy()
    for label in range(3):
        known = (~targets[:, label].isnan()).numpy()
        reference = LogisticRegression(C=1 / 2.0, tol=1e-10, max_iter=10_000)
        counted = None if weights is None else (weights / weights.mean()).numpy()[known]
        reference.fit(rows[known], targets[known, label].numpy(), counted)
        expected = reference.decision_function(rows)
        found = probe.logits(features)[:, label].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_penalty_is_chosen_by_held_out_answers() -> None:
    features, targets = features_and_targets(width=60)
    probe = fit_label_probe(features, targets, 3)
    assert probe.l2 in probe.held_out_nll
    fresh, truth = features_and_targets(images=2000, width=60)
    free = fit_label_probe(features, targets, 3, l2=1e-3)
    nll = {p.l2: MULTILABEL.figures(p.logits(fresh), truth)["nll"] for p in (probe, free)}
    assert nll[probe.l2] < nll[1e-3]


def test_groups_stay_together() -> None:
    features, targets = features_and_targets()
    groups = torch.arange(len(features)) // 2
    twice = fit_label_probe(
        torch.cat([features, features]), torch.cat([targets] * 2), 3, groups=torch.cat([groups] * 2)
    )
    apart = fit_label_probe(torch.cat([features, features]), torch.cat([targets] * 2), 3)
    # With copies on both sides of a fold the weakest penalty looks best.
    assert twice.l2 >= apart.l2


def test_a_label_that_all_or_none_have_gets_a_constant() -> None:
    features, targets = features_and_targets()
    targets[:, 1] = torch.where(targets[:, 1].isnan(), NAN, 0.0)
    probe = fit_label_probe(features, targets, 3)
    none = int((targets[:, 1] == 0).sum())
    torch.testing.assert_close(
        probe.logits(features)[:, 1].sigmoid(),
        torch.full((len(features),), 1 / (none + 2), dtype=torch.float64),
    )


def test_features_that_are_not_finite_are_refused() -> None:
    features, targets = features_and_targets()
    features[0, 0] = NAN
    with pytest.raises(TrainingError, match="finite features"):
        fit_label_probe(features, targets, 3)


@pytest.mark.parametrize("differ", [True, False])
def test_labels_have_penalties_of_their_own_where_that_is_better(differ: bool) -> None:
    def made(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(images, 30, generator=generator, dtype=torch.float64)
        weight = torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(30, 4).sin()
        noise = torch.randn(images, 4, generator=generator, dtype=torch.float64)
        strength = torch.tensor([0.1, 0.1, 100, 100]) if differ else torch.full((4,), 3.0)
        return features, ((features @ weight + strength * noise) > 0).float()

    probe = fit_label_probe(*made(200, 0), 4)
    assert (probe.l2_of_labels is not None) == differ
    if probe.l2_of_labels is None:
        return
    assert max(probe.l2_of_labels[:2]) < min(probe.l2_of_labels[2:])
    common = fit_label_probe(*made(200, 0), 4, l2=probe.l2)
    features, truth = made(2000, 1)
    nll = [MULTILABEL.figures(each.logits(features), truth)["nll"] for each in (probe, common)]
    assert nll[0] < nll[1]
