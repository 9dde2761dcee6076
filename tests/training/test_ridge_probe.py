"""The final layer of numbers: the optimum is scikit-learn's, the penalty cross-validation's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from finetune.errors import TrainingError
from finetune.training.probe_rows import mixed_spreads
from finetune.training.ridge_probe import fit_ridge_probe


def made(
    images: int = 90, width: int = 12, columns: int = 1, noise: float = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(width, columns, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(seed + 1)
    features = torch.randn(images, width, generator=generator, dtype=torch.float64)
    errors = noise * torch.randn(images, columns, generator=generator, dtype=torch.float64)
    return 7 + features * torch.linspace(0.5, 3, width), features @ weight + errors - 4


@pytest.mark.parametrize("width", [12, 200])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("columns", [1, 3])
def test_it_is_scikit_learns_optimum(width: int, weighted: bool, columns: int) -> None:
    features, targets = made(width=width, columns=columns)
    weights = torch.linspace(0.2, 2, len(features)) if weighted else None
    probe = fit_ridge_probe(features, targets, columns, l2=2.0, sample_weights=weights)
    rows = ((features - features.mean(dim=0)) / mixed_spreads(features)).numpy()
    counted = None if weights is None else (weights / weights.mean()).numpy()
    reference = Ridge(alpha=2.0).fit(rows, targets.numpy(), counted).predict(rows)
    found = probe.logits(features).numpy()
    np.testing.assert_allclose(found, reference.reshape(found.shape), atol=1e-4)


@pytest.mark.parametrize("noise", [0.3, 30.0])
def test_the_penalty_suits_the_noise(noise: float) -> None:
    features, targets = made(width=60, noise=noise)
    fresh, truth = made(images=2000, width=60, noise=noise, seed=1)

    def error(l2: float | None) -> float:
        probe = fit_ridge_probe(features, targets, 1, l2=l2)
        return float((probe.logits(fresh) - truth).square().mean())

    # The strongest within one standard error of the best: a little worse, and never much.
    assert error(None) < 1.4 * min(error(l2) for l2 in (1e-2, 1.0, 1e1, 1e2, 1e3, 1e4))
    chosen = fit_ridge_probe(features, targets, 1)
    assert chosen.l2 >= min(chosen.held_out_nll, key=chosen.held_out_nll.__getitem__)


def test_groups_stay_together() -> None:
    features, targets = made(width=60)
    twice, both = torch.cat([features, features]), torch.cat([targets, targets])
    groups = torch.arange(len(features)).repeat(2)
    together = fit_ridge_probe(twice, both, 1, groups=groups)
    apart = fit_ridge_probe(twice, both, 1)
    for l2 in (1e-2, 1.0, 10.0):  # images that were trained on seem to be answered well
        assert apart.held_out_nll[l2] < 0.7 * together.held_out_nll[l2]
    once = fit_ridge_probe(features, targets, 1)
    best = {min(probe.held_out_nll.values()) for probe in (once, together)}
    assert max(best) == pytest.approx(min(best), rel=0.15)


def test_few_images_and_features_that_are_none() -> None:
    features, targets = made(images=5, width=300)
    probe = fit_ridge_probe(features, targets, 1)
    assert bool(probe.logits(features).isfinite().all())
    one_group = fit_ridge_probe(features, targets, 1, groups=torch.zeros(5, dtype=torch.int64))
    assert not one_group.held_out_nll
    with pytest.raises(TrainingError, match="Expected finite features"):
        fit_ridge_probe(features * torch.nan, targets, 1)
