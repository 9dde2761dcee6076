"""Grad-CAM against captum and by what it must do; overlays at the image's own size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import nn

from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.errors import NetworkError, UsageError
from finetune.reporting.explain import explain, grad_cam, seen_part
from finetune.reporting.overlays import overlay, panels
from finetune.spec.preprocessing import Preprocessing
from finetune.training.classifier import ImageClassifier

CONVOLUTIONAL = ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"]


def classifier(backbone: str = "test_resnet", seed: int = 0, **options: object) -> ImageClassifier:
    torch.manual_seed(seed)
    options = {"image_size": 96, **options}
    return ImageClassifier(["red", "green", "blue"], backbone, pretrained=False, **options).eval()


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """Stored on its side: upright it is 90 wide and 150 high."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (90, 150, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to show it
    path = tmp_path / "turned.jpg"
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_equal_to_captum_for_convolutional_networks(backbone: str) -> None:
    network = classifier(backbone).network
    images = torch.randn(2, 3, 96, 96)
    layer = network.layer4 if backbone == "test_resnet" else network.stages[-1]
    reference = LayerGradCam(network, layer).attribute(images, [1, 2], relu_attributions=True)
    torch.testing.assert_close(grad_cam(network, images, [1, 2]), reference[:, 0])


@pytest.mark.parametrize(
    "backbone", [*CONVOLUTIONAL, "test_vit", "baseline_cnn", "swin_tiny_patch4_window7_224"]
)
def test_randomised_weights_change_the_map(backbone: str) -> None:
    """The sanity check of Adebayo et al. 2018: an explanation must depend on what was learned."""
    options = {"image_size": 224} if "swin" in backbone else {}
    network, other = (classifier(backbone, seed, **options).network for seed in (0, 1))
    size = 224 if "swin" in backbone else 96
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    maps = [
        torch.stack([grad_cam(net, images, target)[0] for target in range(3)])
        for net in (network, other)
    ]
    assert maps[0].min() >= 0
    assert maps[0].max() > 0
    assert maps[0].shape[-1] >= 3
    correlation = torch.corrcoef(torch.stack([m.flatten() for m in maps]))[0, 1]
    assert correlation.isnan() or correlation < 0.9
    again = grad_cam(network, images, 0)[0]
    torch.testing.assert_close(again, maps[0][0])


def test_the_map_points_at_what_decides() -> None:
    """A network that counts red in one place: the heat is there, and not where nothing is."""

    class Counts(nn.Module):
        num_features = 3

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(images, 8)

        def forward_head(self, features: torch.Tensor) -> torch.Tensor:
            return features.mean(dim=(2, 3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.forward_head(self.forward_features(images))

    images = torch.zeros(1, 3, 64, 64)
    images[:, 0, :16, 48:] = 1  # red, upper right
    images[:, 2, 48:, :16] = 1  # blue, lower left
    red, blue = grad_cam(Counts(), images, 0)[0], grad_cam(Counts(), images, 2)[0]
    assert red[:2, 6:].min() > 0
    assert red.sum() == pytest.approx(red[:2, 6:].sum())
    assert blue.sum() == pytest.approx(blue[6:, :2].sum())


def test_vision_transformers_are_explained_by_their_patches() -> None:
    network = classifier("test_vit").network
    images = torch.randn(1, 3, 96, 96)
    assert grad_cam(network, images, 0).shape == (1, 6, 6)


def test_the_network_is_left_as_it_was() -> None:
    network = classifier("test_vit").network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    grad_cam(network, torch.randn(1, 3, 96, 96), 0)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.blocks[-1].norm1._forward_hooks


def test_a_network_without_feature_map_is_refused() -> None:
    class Flat(nn.Module):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    with pytest.raises(NetworkError, match="feature map"):
        grad_cam(Flat(), torch.zeros(1, 3, 8, 8), 0)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_an_explanation_has_the_upright_images_own_size(photograph: Path, in_chans: int) -> None:
    model = classifier(in_chans=in_chans)
    predicted, red = explain(model, photograph, [None, "red"])
    assert predicted.image.shape == (150, 90, 3)
    assert predicted.heat.shape == (150, 90)
    assert red.class_name == "red"
    assert 0 < red.probability <= predicted.probability < 1
    assert overlay(red).shape == (150, 90, 3)
    top, left, bottom, right = red.seen
    outside = np.ones((150, 90), dtype=bool)
    outside[top:bottom, left:right] = False
    assert outside.any()
    assert red.heat[outside].max() == 0
    for explanation in (predicted, red):
        assert explanation.heat.max() in (0, 1)


def test_an_ensemble_is_explained_by_its_members(photograph: Path) -> None:
    one, two = classifier("test_resnet"), classifier("test_vit", seed=1)
    two.class_names = ("blue", "red", "green")
    members = [ClassifierMember(one, "one"), ClassifierMember(two, "two")]
    (alone,) = explain(Ensemble(members, coefficients=[1, 0]), photograph, ["green"])
    (same,) = explain(one, photograph, ["green"])
    np.testing.assert_allclose(alone.heat, same.heat, atol=1e-6)
    assert alone.probability == pytest.approx(same.probability)
    (both,) = explain(Ensemble(members), photograph, ["green"])
    (other,) = explain(two, photograph, ["green"])
    assert both.probability == pytest.approx((same.probability + other.probability) / 2)
    mixed = same.heat + other.heat
    np.testing.assert_allclose(both.heat, mixed / mixed.max(), atol=1e-5)


def test_a_number_has_a_map_of_what_raises_and_of_what_lowers_it(photograph: Path) -> None:
    torch.manual_seed(0)
    options = {"pretrained": False, "image_size": 96, "task": "regression"}
    one = ImageClassifier(["age"], "test_resnet", **options).eval()  # type: ignore[arg-type]
    one.unit.learn(torch.linspace(20, 60, 9).unsqueeze(1))
    raises, lowers = explain(one, photograph)
    assert [each.class_name for each in (raises, lowers)] == ["raises age", "lowers age"]
    assert 20 < raises.probability < 60
    assert raises.told == lowers.told == f"{raises.probability:.6g}"
    assert max(raises.heat.max(), lowers.heat.max()) == pytest.approx(1)
    assert not (np.minimum(raises.heat, lowers.heat) > 0).any()
    with torch.no_grad():
        for values in one.network.get_classifier().parameters():
            values.neg_()
    turned = explain(one, photograph)
    np.testing.assert_allclose(turned[0].heat, lowers.heat, atol=1e-5)
    np.testing.assert_allclose(turned[1].heat, raises.heat, atol=1e-5)
    twice = Ensemble([ClassifierMember(one, "a"), ClassifierMember(one, "b")])
    np.testing.assert_allclose(explain(twice, photograph)[0].heat, turned[0].heat, atol=1e-5)


def test_what_cannot_be_explained_is_refused(photograph: Path) -> None:
    with pytest.raises(UsageError, match="found 'grey'"):
        explain(classifier(), photograph, ["grey"])
    with pytest.raises(UsageError, match="classifier, or an ensemble"):
        explain(object(), photograph)


def test_the_seen_part_is_what_the_transform_keeps() -> None:
    preprocessing = Preprocessing(image_size=80, crop_fraction=0.8)
    assert seen_part((100, 100), preprocessing) == (10, 10, 90, 90)
    assert seen_part((100, 300), preprocessing) == (10, 110, 90, 190)
    whole = Preprocessing(image_size=80, crop_fraction=1.0)
    assert seen_part((50, 70), whole) == (0, 10, 50, 60)


def test_a_long_name_leaves_room_for_its_figure(photograph: Path) -> None:
    (one,) = explain(classifier(), photograph, ["red"])
    sheets = [
        np.asarray(panels([[replace(one, class_name=f"{'W' * 60}{end}", told=told)]]))
        for end, told in (("a", "10 %"), ("b", "10 %"), ("a", "20 %"))
    ]
    np.testing.assert_array_equal(sheets[0][:26], sheets[1][:26], "the name's end is cut off")
    assert (sheets[0][:26] != sheets[2][:26]).any(), "the probability is not"


def test_panels_keep_every_images_size(photograph: Path) -> None:
    explanations = explain(classifier(), photograph, ["red", "green"])
    sheet = np.asarray(panels([explanations, explanations[:1]]))
    assert sheet.shape[0] >= 2 * 150
    np.testing.assert_array_equal(sheet[26:176, :90], explanations[0].image)
