"""A contract over families: in any company a member answers as it does alone, bit for bit."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune import Ensemble, ImageClassifier
from finetune.combining.ingredients import survey
from finetune.combining.members import ClassifierMember
from finetune.combining.shared_backbone import group_by_backbone
from finetune.errors import CheckpointMismatchError
from finetune.training.checkpoints import write_checkpoint
from finetune.training.features.extract import space_key

NAMES = ("a", "b", "c")
SIDE = 96  # at 32 pixels there is nothing left to pool
# Two ways to build what takes the same weights, and computes something else.
PAIRS = {
    "pooling": [("test_resnet", {"global_pool": "avg"}), ("test_resnet", {"global_pool": "max"})],
    "default pooling": [("test_resnet", {}), ("test_resnet", {"global_pool": "max"})],
    "activation": [("test_resnet", {}), ("test_resnet", {"act_layer": "gelu"})],
    "stride": [("test_resnet", {}), ("test_resnet", {"output_stride": 8})],
    "efficientnet's pooling": [
        ("test_efficientnet", {}),
        ("test_efficientnet", {"global_pool": "max"}),
    ],
    "vit's activation": [("test_vit", {}), ("test_vit", {"act_layer": "relu"})],
    "convnext's pooling": [("test_convnext", {}), ("test_convnext", {"global_pool": "max"})],
    "baseline's pooling": [("baseline_cnn", {}), ("baseline_cnn", {"pool": "average"})],
    "namesakes": [("tf_efficientnet_lite0", {}), ("efficientnet_lite0", {})],
}
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
FAMILIES = (
    *("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet"),
    *("baseline_cnn", "baseline_mlp", "mobilenetv3_small_050", "dla46_c", "efficientvit_m0"),
    "test_byobnet",
)


def classifier_of(backbone: str, options: dict[str, object] | None = None) -> ImageClassifier:
    torch.manual_seed(0)
    classifier = ImageClassifier(
        NAMES, backbone, pretrained=False, image_size=SIDE, network_options=options
    )
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
    return classifier.eval()


def with_another_head(classifier: ImageClassifier) -> ImageClassifier:
    other = deepcopy(classifier)
    nn.init.normal_(other.network.get_classifier().weight, 0, 0.1)
    return other


def twins(pair: list[tuple[str, dict[str, object]]]) -> list[ImageClassifier]:
    """Both ways, with equal weights and one preprocessing."""
    one, other = (classifier_of(name, options) for name, options in pair)
    other.load_state_dict(one.state_dict())
    other._see_by(one.preprocessing)
    return [one, other]


def images() -> torch.Tensor:
    return torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def assert_alone(classifiers: list[ImageClassifier]) -> None:
    with torch.inference_mode():
        alone = torch.stack([each(images()) for each in classifiers])
    ensemble = Ensemble([ClassifierMember(deepcopy(each), "m") for each in classifiers])
    views = {preprocessing: images() for preprocessing in ensemble.preprocessings}
    assert torch.equal(ensemble.member_logits(views), alone)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_members_of_one_backbone(backbone: str) -> None:
    one = classifier_of(backbone)
    assert_alone([one, with_another_head(one), classifier_of("test_vit")])


@pairs
def test_members_that_compute_differently(pair: list[tuple[str, dict[str, object]]]) -> None:
    one, other = twins(pair)
    with torch.inference_mode():
        assert not torch.allclose(one(images()), other(images())), "no pair to test with"
    assert_alone([one, other, with_another_head(one), with_another_head(other)])
    members = [ClassifierMember(each, "m") for each in (one, other)]
    assert group_by_backbone(members) == [[0], [1]]


@pairs
def test_they_share_no_key(pair: list[tuple[str, dict[str, object]]]) -> None:
    one, other = twins(pair)
    assert one.spec.key != other.spec.key
    assert space_key(one, "head", None) != space_key(other, "head", None)


@pairs
def test_they_are_never_averaged(pair: list[tuple[str, dict[str, object]]], tmp_path: Path) -> None:
    paths = [written(each, tmp_path / f"{n}.ckpt") for n, each in enumerate(twins(pair))]
    with pytest.raises(CheckpointMismatchError, match=r"Expected network .* combine them with"):
        survey(paths)


def written(classifier: ImageClassifier, path: Path) -> Path:
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=dict(classifier.hparams),
        entry=classifier.entry(),
    )
    return path


@pytest.mark.parametrize("load", [classifier_of, lambda name: classifier_of(name, {})])
def test_one_network_under_two_names_is_shared(load: Callable[[str], ImageClassifier]) -> None:
    one, other = load("test_resnet"), load("test_resnet.r160_in1k")
    other._see_by(one.preprocessing)
    members = [ClassifierMember(each, "m") for each in (one, other)]
    assert one.spec.key == other.spec.key
    assert group_by_backbone(members) == [[0, 1]]
