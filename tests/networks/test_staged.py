"""A final layer that reads several stages: the same contract for every family that has it."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune.errors import NetworkError
from finetune.networks.factory import build_network, create_network, network_spec
from finetune.networks.final_layer import output_tensors
from finetune.networks.freezing import freeze, network_stages, split_at, stages_below
from finetune.networks.staged import Staged, read_stages, readable_stages, reader_of
from finetune.spec.network import NetworkSpec

# Name, a size that is quick, and which stages are read.
NETWORKS = [
    ("baseline_cnn", 32, "stages.0 stages.1 stages.2 stages.3"),
    ("resnet18", 64, "layer1 layer2 layer3 layer4"),
    ("mobilenetv3_small_050", 64, "blocks.0 blocks.1 blocks.3 blocks.5"),
    ("tf_efficientnet_lite0", 64, "blocks.1 blocks.2 blocks.4 blocks.6"),
    ("convnext_atto", 64, "stages.0 stages.1 stages.2 stages.3"),
    ("test_vit", 160, "blocks.2 blocks.3 blocks.4 blocks.5"),
    ("inception_v3", 96, "Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c"),
]
of_all = pytest.mark.parametrize(("name", "size", "read"), NETWORKS, ids=[n for n, *_ in NETWORKS])


def plain(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_network(name, 5).eval()


def staged(name: str, read: str) -> Staged:
    network = plain(name)
    width = sum(each["num_chs"] for each in network.feature_info if each["module"] in read.split())
    read_stages(network, read.split(), torch.linspace(0.5, 2, width))
    torch.nn.init.normal_(network.get_classifier().weight, std=0.05)
    return network


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@of_all
def test_it_reads_the_pooled_outputs_beside_the_heads_features(
    name: str, size: int, read: str
) -> None:
    network, seen = plain(name), {}
    assert readable_stages(network) == tuple(read.split())
    names = set(network.state_dict())
    for stage in read.split():
        network.get_submodule(stage).register_forward_hook(
            lambda module, given, output, stage=stage: seen.update({stage: output})
        )
    with torch.no_grad():
        head = network.forward_head(network.forward_features(images(size)), pre_logits=True)
        before = network(images(size))
        pooled = [
            each.mean(dim=(2, 3)) if each.ndim == 4 else each[:, 1:].mean(dim=1)
            for each in seen.values()
        ]
        twin = reader_of(network, read.split())
        torch.testing.assert_close(
            twin.forward_features(images(size)), torch.cat([head, *pooled], dim=1)
        )
        assert not isinstance(network, Staged)  # as it was
        scales = torch.linspace(0.5, 2, twin.read_width)
        read_stages(network, read.split(), scales)
        features = network.forward_features(images(size))
        expected = torch.cat([head, torch.cat(pooled, dim=1) * scales], dim=1)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(network(images(size)), before)  # weights of zero, so far
    assert set(network.state_dict()) == {*names, "read_scales"}


@of_all
def test_it_keeps_the_contract_of_a_network(name: str, size: int, read: str) -> None:
    network = staged(name, read)
    with torch.no_grad():
        features = network.forward_features(images(size))
        pooled = network.forward_head(features, pre_logits=True)
        logits = network(images(size))
        torch.testing.assert_close(network.forward_head(features), logits)
        torch.testing.assert_close(network.get_classifier()(pooled), logits)
        assert torch.equal(deepcopy(network)(images(size)), logits)
        activations, head = network.last_map(images(size))
        torch.testing.assert_close(head(activations), logits)
        assert len(output_tensors(network)) == 2
        network.reset_classifier(9)
        assert network(images(size)).shape == (2, 9)
        torch.testing.assert_close(network.forward_features(images(size)), features)


@of_all
def test_the_halves_answer_as_the_whole(name: str, size: int, read: str) -> None:
    network = staged(name, read)
    with torch.no_grad():
        logits = network(images(size))
        for boundary in list(network_stages(network))[1:]:
            bottom, top = split_at(network, boundary)
            # A batch of one as well: what is cached of an image is one tensor.
            activations = torch.cat([bottom(each[None]) for each in images(size)])
            torch.testing.assert_close(top(activations), logits, atol=1e-4, rtol=1e-4)


@of_all
def test_what_is_frozen_stays_and_what_reads_it_learns(name: str, size: int, read: str) -> None:
    network = staged(name, read)
    boundary = list(network_stages(network))[-2]
    frozen = stages_below(network, boundary)
    freeze(network, frozen)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    bottom, top = split_at(network, boundary)
    nn.functional.cross_entropy(top(bottom(images(size))), torch.tensor([0, 1])).backward()
    torch.optim.SGD([v for v in network.parameters() if v.requires_grad], lr=1.0).step()
    stages = network_stages(network)
    below = {key for stage in frozen for key in stages[stage]} | {"read_scales"}
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in below)
    early = after[stages["head"][0]][:, network.head_width :]
    assert not torch.equal(early, before[stages["head"][0]][:, network.head_width :])


@of_all
def test_a_spec_builds_it_again_and_is_not_the_plain_ones(
    name: str, size: int, read: str, tmp_path: Path
) -> None:
    network, spec = staged(name, read), network_spec(name).reading(read.split())
    assert spec != network_spec(name)
    assert spec == network_spec(name, stages=read.split())
    other = build_network(NetworkSpec.from_dict(spec.to_dict()), 5).eval()
    other.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other(images(size)), network(images(size)))


def test_what_cannot_be_read_is_refused() -> None:
    assert readable_stages(create_network("xcit_nano_12_p16_224", 3)) == ()
    assert readable_stages(staged("resnet18", "layer1")) == ()
    with pytest.raises(NetworkError, match=r"stages out of act1, layer1, .*found 'layer9'"):
        create_network("resnet18", 3, stages=["layer9"])
    with pytest.raises(NetworkError, match="found none"):
        create_network("resnet18", 3, stages=[])
    with pytest.raises(NetworkError, match="found 4"):
        create_network("resnet18", 3, stages=4)
    with pytest.raises(NetworkError, match="one after the other"):
        create_network("xcit_nano_12_p16_224", 3, stages=["blocks.1"])
