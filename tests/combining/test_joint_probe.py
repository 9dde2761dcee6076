"""One final layer on several backbones' features is an ensemble of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.combining.joint_probe import fit_joint_probe, joint_ensemble
from finetune.combining.members import ClassifierMember
from finetune.networks.splitting import split_at_parameters
from finetune.tasks import categorical
from finetune.training.classifier import ImageClassifier
from finetune.training.linear_probe import Probe, fit_probe

NAMES = ("a", "b", "c")


def features(count: int, knows: float, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, width, generator=generator) * knows
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed + 99))
    return centres[labels] + noise, labels


def answered(probes: list[Probe], each: list[Tensor]) -> Tensor:
    return torch.stack([p.logits(rows) for p, rows in zip(probes, each, strict=True)]).sum(dim=0)


def test_each_backbone_is_held_down_by_a_penalty_of_its_own() -> None:
    """Noise of another backbone, however wide and large, costs little; knowledge adds up."""
    one, labels = features(300, 0.35, 10, 0)
    two, _ = features(300, 0.35, 12, 1)
    noise, _ = features(300, 0.0, 60, 2)
    train, test = slice(0, 150), slice(150, 300)

    def nll(*blocks: Tensor) -> float:
        probes = fit_joint_probe([each[train] for each in blocks], labels[train], 3)
        logits = answered(probes, [each[test] for each in blocks])
        return float(categorical.losses(logits, labels[test]).mean())

    alone = float(
        categorical.losses(
            fit_probe(one[train], labels[train], 3).logits(one[test]), labels[test]
        ).mean()
    )
    assert nll(one, two) < alone - 0.03
    assert nll(one, 100 * noise) < alone + 0.03
    probes = fit_joint_probe([one[train], noise[train]], labels[train], 3)
    assert probes[1].l2 > 10 * probes[0].l2


def test_its_gradient_vanishes_for_each_backbones_own_penalty() -> None:
    """The optimum of the sum of losses and, for each, its penalty on weights of scaled features."""
    each = [features(90, 0.5, 6, 0)[0], 50 * features(90, 0.3, 8, 1)[0]]
    labels = features(90, 0.5, 6, 0)[1]
    probes = fit_joint_probe(each, labels, 3)
    weights = [probe.weight.clone().requires_grad_() for probe in probes]
    logits = sum(
        rows.double() @ w.T + p.bias for rows, w, p in zip(each, weights, probes, strict=True)
    )
    assert isinstance(logits, Tensor)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    for rows, weight, probe in zip(each, weights, probes, strict=True):
        own = rows.double().std(dim=0, correction=0)
        spreads = ((own.square() + own.mean().square()) / 2).sqrt()
        loss = loss + probe.l2 / 2 * (weight * spreads).square().sum()
    for gradient, rows in zip(torch.autograd.grad(loss, weights), each, strict=True):
        assert (gradient / rows.double().std(dim=0)).abs().max() < 1e-2


@pytest.fixture(scope="module")
def classifiers() -> list[ImageClassifier]:
    found = []
    for seed, backbone in enumerate(("test_resnet", "test_vit")):
        torch.manual_seed(seed)
        names = NAMES if seed == 0 else NAMES[::-1]
        found.append(
            ImageClassifier(names, backbone=backbone, pretrained=False, image_size=32).eval()
        )
    return found


def test_the_answer_is_the_sum_also_in_another_order_and_from_a_file(
    classifiers: list[ImageClassifier], tmp_path: Path
) -> None:
    images = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(12) % 3
    with torch.no_grad():
        rows = [
            split_at_parameters(each.network, "head", ()).bottom(each.normalised(images))
            for each in classifiers
        ]
    probes = fit_joint_probe(rows, labels, 3)
    before = [each.network.get_classifier().weight.clone() for each in classifiers]
    members = [ClassifierMember(each, each.backbone) for each in classifiers]
    joint = joint_ensemble(members, probes, NAMES)
    expected = categorical.probabilities(answered(probes, rows)).float()
    joint.save(tmp_path / "joint.ckpt")
    for ensemble in (joint, Ensemble.from_file(tmp_path / "joint.ckpt")):
        views = dict.fromkeys(ensemble.preprocessings, images)
        torch.testing.assert_close(ensemble.probabilities(views), expected, atol=1e-5, rtol=1e-4)
    for each, weight in zip(classifiers, before, strict=True):
        torch.testing.assert_close(each.network.get_classifier().weight, weight)
