"""Errors by the number of images: of made data, against fits on new draws and a large judge."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from finetune.evaluation.learning_curve import LearningCurve
from finetune.training.linear_probe import fit_probe
from finetune.training.nested_probes import nested_answers, nested_sizes

CLASSES, WIDTH = 3, 6


def made(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = 0.7 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(images) % CLASSES
    features = means[labels] + torch.randn(images, WIDTH, generator=generator)
    order = torch.randperm(images, generator=generator)
    return features[order], labels[order]


def accuracies(sizes: Sequence[int], draws: int) -> list[float]:
    """Means over draws, each fitted to more and more of its images."""
    judged, truth = made(3000, 10**6)
    found = []
    for seed in range(draws):
        features, labels = made(max(sizes), seed)
        for size in sizes:
            probe = fit_probe(features[:size], labels[:size], CLASSES, l2=10.0)
            found.append(float((probe.logits(judged).argmax(1) == truth).double().mean()))
    return np.mean(np.reshape(found, (draws, -1)), axis=0).tolist()


def test_errors_and_gain_are_those_of_new_draws() -> None:
    errors, gains, inside = [], [], []
    now = 90
    before, after = accuracies((now, now + 50), 60)
    truth = after - before
    for seed in range(8):
        features, labels = made(now, 10 * seed)
        answers = nested_answers(features, labels, torch.arange(now), repeats=2, seed=seed)
        errors.append(answers.wrong.mean(axis=0))
        gain = LearningCurve(*answers).gain(now, 50)
        gains.append(gain.value)
        inside.append(gain.low <= truth <= gain.high)
    sizes = answers.sizes
    measured = np.mean(errors, axis=0)
    assert len(sizes) == 5
    np.testing.assert_allclose(1 - measured, accuracies(sizes, 20), atol=0.04)
    assert np.mean(gains) == pytest.approx(truth, abs=0.012)
    assert np.mean(inside) >= 0.75


def test_copies_of_an_image_never_judge_it() -> None:
    # Labels are noise: whoever finds them right has learnt them by heart.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 80, generator=generator).repeat(2, 1)
    labels = torch.randint(3, (60,), generator=generator).repeat(2)
    groups = torch.arange(60).repeat(2)
    apart = nested_answers(features, labels, torch.arange(120), repeats=1)
    together = nested_answers(features, labels, groups, repeats=1)
    assert together.wrong[:, -1].mean() > 0.5
    assert apart.wrong[:, -1].mean() < 0.3


def test_a_class_of_one_image_is_never_held_out() -> None:
    features, labels = made(60, 0)
    labels = labels.clone()
    labels[0] = 7
    answers = nested_answers(features, labels, torch.arange(60), repeats=1)
    assert len(answers.wrong) == 59


@pytest.mark.parametrize(("pool", "classes"), [(400, 12), (30, 12), (8, 2), (24, 12)])
def test_sizes_rise_up_to_the_pool(pool: int, classes: int) -> None:
    sizes = nested_sizes(pool, classes)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == pool
    assert sizes[0] >= min(pool, 2 * classes)
