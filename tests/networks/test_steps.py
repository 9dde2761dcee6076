"""Cut into steps, a network answers and learns as the whole one does, bit for bit; every family."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.errors import NetworkError
from finetune.networks.factory import create_network
from finetune.networks.freezing import network_stages, split_at
from finetune.networks.module_chain import module_chain
from finetune.networks.splitting import evaluating
from finetune.networks.staged import read_stages, readable_stages, reader_of
from finetune.networks.steps import forward_steps, run_steps

SMALL_TRANSFORMER = {"depth": 4, "embed_dim": 32, "num_heads": 2}
WINDOWED = {
    "image_size": 64,
    "depths": (1, 2, 1, 1),
    "embed_dim": 24,
    "num_heads": (1, 2, 2, 4),
    "window_size": 2,
}
# Name, a size that is quick, what makes it small, and whether a final layer can read its stages.
NETWORKS: list[tuple[str, int, Mapping[str, Any], bool]] = [
    ("hgnetv2_b0", 64, {}, True),
    ("tiny_vit_5m_224", 64, {"embed_dims": (24, 24, 48, 48), "num_heads": (1, 1, 2, 2)}, True),
    ("poolformer_s12", 32, {}, True),
    ("swin_tiny_patch4_window7_224", 64, WINDOWED, True),
    ("swinv2_tiny_window8_256", 64, WINDOWED, True),
    ("regnetx_002", 64, {}, True),
    ("vit_small_patch16_dinov3", 64, SMALL_TRANSFORMER, True),
    ("eva02_tiny_patch14_224", 56, {**SMALL_TRANSFORMER, "image_size": 56}, True),
    ("mobilenetv4_conv_small", 64, {}, True),
    ("fastvit_t8", 64, {"layers": (1, 1, 1, 1), "embed_dims": (24, 24, 48, 48)}, True),
    ("test_resnet", 64, {}, True),
    ("test_efficientnet", 64, {}, True),
    ("mobilenetv3_small_050", 64, {}, True),
    ("test_convnext", 64, {}, True),
    ("test_vit", 80, {}, True),
    ("test_byobnet", 64, {}, True),
    ("test_nfnet", 64, {}, True),
    ("test_mambaout", 96, {}, True),
    ("densenet121", 32, {"block_config": (1, 1, 1, 1)}, True),
    ("baseline_cnn", 40, {}, True),
    ("baseline_mlp", 32, {}, False),
]
of_all = pytest.mark.parametrize(
    ("name", "size", "options", "reads"), NETWORKS, ids=[name for name, *_ in NETWORKS]
)


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network = create_network(name, 4, **options)
    # Networks of timm's start with zeros in places; then half of a network could be missed.
    for value in network.parameters():
        value.data.add_(0.01 * torch.randn_like(value))
    return network


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def gradients(network: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    (logits * torch.arange(4.0)).sum().backward()
    return {
        name: value.grad.clone()
        for name, value in network.named_parameters()
        if value.grad is not None
    }


@of_all
def test_the_steps_are_the_network_bit_for_bit(
    name: str, size: int, options: Mapping[str, Any], reads: bool
) -> None:
    network, batch = build(name, options), images(size)
    steps = forward_steps(network)
    with evaluating(network):
        assert torch.equal(network.forward_head(run_steps(steps, batch)[0]), network(batch))
    network.train()
    torch.manual_seed(2)
    whole = network(batch)
    expected = gradients(network, whole)
    torch.manual_seed(2)
    in_steps = network.forward_head(run_steps(steps, batch)[0])
    assert torch.equal(in_steps, whole)
    found = gradients(network, in_steps)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert len({step for step, _ in steps}) == len(steps) > 2


@of_all
def test_cut_at_every_stage_it_answers_and_learns_as_the_whole(
    name: str, size: int, options: Mapping[str, Any], reads: bool
) -> None:
    network, batch = build(name, options).eval(), images(size)
    whole = network(batch)
    expected = gradients(network, whole)
    stages = network_stages(network)
    for boundary in list(stages)[1:][-4:]:
        bottom, top = split_at(network, boundary)
        activations = bottom(batch)
        kept = activations.clone()
        logits = top(activations)
        assert torch.equal(activations, kept), "the upper half overwrites what the caller keeps"
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
        found = gradients(network, logits)
        for stage in list(stages)[list(stages).index(boundary) :]:
            for key in stages[stage]:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)


@of_all
def test_a_stage_is_read_as_the_mean_over_the_image(
    name: str, size: int, options: Mapping[str, Any], reads: bool
) -> None:
    network, batch, seen = build(name, options).eval(), images(size), {}
    stages = readable_stages(network)
    assert bool(stages) is reads
    if not reads:
        return
    for stage in stages:
        network.get_submodule(stage).register_forward_hook(
            lambda module, given, output, stage=stage: seen.update({stage: output})
        )
    with evaluating(network):
        head = network.forward_head(network.forward_features(batch), pre_logits=True).flatten(1)
        read = reader_of(network, stages).forward_features(batch)[:, head.shape[1] :]
    told = {each["module"]: each["num_chs"] for each in network.feature_info}
    for stage, part in zip(stages, read.split([told[s] for s in stages], dim=1), strict=True):
        output, width = seen[stage], told[stage]
        (axis,) = (axis for axis in (1, -1) if output.shape[axis] == width)
        places = output.movedim(axis, -1).reshape(2, -1, width)
        if output.ndim == 3:
            places = places[:, network.num_prefix_tokens :]
        torch.testing.assert_close(part, places.mean(dim=1))
    read_stages(network, stages)
    nn.init.normal_(network.get_classifier().weight, std=0.05)
    with torch.no_grad():
        logits = network(batch)
        activations, head = network.last_map(batch)
        torch.testing.assert_close(head(activations), logits)
        for boundary in list(network_stages(network))[1:][-3:]:
            bottom, top = split_at(network, boundary)
            torch.testing.assert_close(top(bottom(batch)), logits, atol=1e-4, rtol=1e-4)


class Between(nn.Module):
    """Three layers; what happens between them is not theirs."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 8, 8)}
        self.between = between
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)
        self.third = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 4))

    def forward_features(self, images: Tensor) -> Tensor:
        value = self.first(images)
        match self.between:
            case "a function":
                value = value.tanh()
            case "a change in place":
                value.mul_(2)
            case "a branch":
                value = value + self.second(value)
            case "a module twice":
                value = self.first(value)
            case "one more in training" if self.training:
                value = self.second(value)
        return self.third(self.second(value))


@pytest.mark.parametrize(
    "between",
    ["a function", "a change in place", "a branch", "a module twice", "one more in training"],
)
def test_what_is_no_chain_of_modules_is_not_taken_for_one(between: str) -> None:
    assert list(module_chain(Between("nothing"))) == [
        "first", "second", "third.0", "third.1", "third.2",
    ]  # fmt: skip
    assert not module_chain(Between(between))
    with pytest.raises(NetworkError, match="found Between"):
        forward_steps(Between(between))


def test_following_leaves_a_network_as_it_was() -> None:
    network = build("test_resnet", {}).train()
    network.layer1.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert module_chain(network)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(value.device.type == "cpu" for value in network.state_dict().values())
    hooks = [*network._forward_hooks, *network._forward_pre_hooks]
    assert not hooks


def test_other_channels_and_sizes_are_followed() -> None:
    assert module_chain(create_network("test_resnet", 4, in_chans=1))
    assert module_chain(create_network("swin_tiny_patch4_window7_224", 4, **WINDOWED))


def test_a_final_layer_of_several_behind_a_norm_takes_the_features() -> None:
    network = build("caformer_s18", {}).eval()
    batch = images(32)
    bottom, top = split_at(network, "head")
    with torch.no_grad():
        assert torch.equal(top(bottom(batch)), network(batch))
    with pytest.raises(NetworkError, match="layers between in NormLinear"):
        split_at(create_network("shvit_s1", 4), "head")


def test_without_timms_grouping_stages_are_the_order_of_modules() -> None:
    network = build("poolformer_s12", {})
    assert not hasattr(network, "group_matcher")
    stages = network_stages(network)
    assert list(stages) == ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]
    assert sorted(key for names in stages.values() for key in names) == sorted(
        key for key, _ in network.named_parameters()
    )
    assert list(network_stages(create_network("pit_ti_224", 4))) == ["stem", "head"]
