"""What every network must do, baselines and timm's alike, so that all else works with them."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from finetune.networks.factory import create_network, preprocessing_of
from finetune.networks.freezing import freeze, split_at, stages_below

# Name and a size that is quick; inception_v3 works from 75 pixels on.
NETWORKS = [
    ("baseline_mlp", 32),
    ("baseline_cnn", 32),
    ("baseline_resnet", 32),
    ("baseline_inception", 32),
    ("test_resnet", 64),
    ("test_vit", 160),
    ("resnet18", 64),
    ("mobilenetv3_small_050", 64),
    ("inception_v3", 96),
    ("tf_efficientnet_lite0", 64),
]
pytestmark = pytest.mark.parametrize(("name", "size"), NETWORKS, ids=[n for n, _ in NETWORKS])


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    network = create_network(name, 5, **options)
    return network.eval()


def batch(size: int, in_chans: int = 3) -> torch.Tensor:
    return torch.randn(2, in_chans, size, size, generator=torch.Generator().manual_seed(1))


def test_shapes_and_the_way_through(name: str, size: int) -> None:
    network, images = build(name), batch(size)
    with torch.no_grad():
        features = network.forward_features(images)
        pooled = network.forward_head(features, pre_logits=True)
        logits = network(images)
    assert logits.shape == (2, 5)
    assert pooled.shape == (2, network.head_hidden_size)
    torch.testing.assert_close(network.forward_head(features), logits)
    torch.testing.assert_close(network.get_classifier()(pooled), logits)
    assert network.num_classes == 5


def test_greyscale(name: str, size: int) -> None:
    network = build(name, in_chans=1)
    with torch.no_grad():
        assert network(batch(size, 1)).shape == (2, 5)
    assert preprocessing_of(name, in_chans=1).in_chans == 1


def test_the_final_layer_is_replaced_and_nothing_else(name: str, size: int) -> None:
    network, images = build(name), batch(size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features(images), pre_logits=True)
        network.reset_classifier(9)
        assert network(images).shape == (2, 9)
        again = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(again, pooled)
    head = {id(value) for value in network.get_classifier().parameters()}
    for key, value in network.named_parameters():
        if id(value) not in head:
            assert torch.equal(value, before[key])
    network.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(network(images), pooled)


def test_the_final_layer_alone_learns(name: str, size: int) -> None:
    network, images = build(name), batch(size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    freeze(network, stages_below(network, "head"))
    bottom, top = split_at(network, "head")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    nn.functional.cross_entropy(top(bottom(images)), torch.tensor([0, 1])).backward()
    optimizer.step()
    head = {id(value) for value in network.get_classifier().parameters()}
    names = {key for key, value in network.named_parameters() if id(value) in head}
    changed = {
        key for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == names


def test_saved_and_loaded_it_answers_the_same(name: str, size: int, tmp_path: Path) -> None:
    network, images = build(name), batch(size)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(9)
    other = create_network(name, 5).eval()
    other.load_state_dict(
        safetensors.torch.load_file(tmp_path / "weights.safetensors"), strict=True
    )
    with torch.no_grad():
        assert torch.equal(other(images), network(images))


def test_timm_keeps_and_finds_it_in_a_folder(name: str, size: int, tmp_path: Path) -> None:
    network, images = build(name), batch(size)
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(other(images), network(images))
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert features(images).shape == (2, network.head_hidden_size)


def test_its_preprocessing_is_known(name: str, size: int) -> None:
    preprocessing = preprocessing_of(name)
    assert preprocessing.in_chans == 3
    assert preprocessing.image_size >= 64
