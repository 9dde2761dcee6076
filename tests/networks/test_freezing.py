"""Frozen means frozen, for every family; the split network answers as the whole one does."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import NetworkError
from finetune.networks import baselines as _register  # noqa: F401
from finetune.networks.freezing import (
    apply_modes,
    freeze,
    network_stages,
    split_at,
    stages_below,
)
from finetune.training.optimizers import parameter_groups

# Name, image size, a boundary inside the network.
NETWORKS = [
    ("baseline_mlp", 32, "stages"),
    ("baseline_cnn", 32, "stages.2"),
    ("baseline_resnet", 32, "stages.3"),
    ("baseline_inception", 32, "stages.1"),
    ("resnet18", 64, "layer4"),
    ("test_resnet", 64, "layer2"),
    ("tf_efficientnet_lite0", 64, "blocks.5"),
    ("mobilenetv3_small_050", 64, "blocks.4"),
    ("convnext_atto", 64, "stages.2"),
    ("test_vit", 160, "blocks.3"),
    ("inception_v3", 96, "Mixed_7a"),
]
NAMES = [name for name, *_ in NETWORKS]


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=4)
    # Networks of timm's start with zeros in places; then half of a network could be missed.
    for value in network.parameters():
        value.data.add_(0.01 * torch.randn_like(value))
    return network


def images(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def learning_stages(network: nn.Module) -> list[str]:
    learning = {name for name, value in network.named_parameters() if value.requires_grad}
    return [stage for stage, names in network_stages(network).items() if learning & {*names}]


def train_a_few_steps(network: nn.Module, size: int, batch_norm: str = "eval") -> None:
    network.train()
    apply_modes(network, batch_norm=batch_norm)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        loss = nn.functional.cross_entropy(network(images(size, 4)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "size", "boundary"), NETWORKS, ids=NAMES)
def test_a_frozen_part_stays_bit_identical_and_the_rest_learns(
    name: str, size: int, boundary: str
) -> None:
    network = build(name)
    frozen = stages_below(network, boundary)
    freeze(network, frozen, batch_norm="train")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    train_a_few_steps(network, size, batch_norm="train")
    stages = network_stages(network)
    frozen_names = {key for stage in frozen for key in stages[stage]}
    # Buffers belong to the stage whose parameters are in the same module.
    frozen_modules = {key.rpartition(".")[0] for key in frozen_names}
    for key, value in network.state_dict().items():
        still = key in frozen_names or (
            key not in dict(network.named_parameters()) and key.rpartition(".")[0] in frozen_modules
        )
        if still:
            assert torch.equal(value, before[key]), key
    moved = [
        key for key in stages["head"] if not torch.equal(network.get_parameter(key), before[key])
    ]
    assert len(moved) == len(stages["head"])
    assert learning_stages(network) == [*stages][len(frozen) :]
    assert network.state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "inception_v3"])
def test_batch_norm_modes(name: str) -> None:
    network = build(name)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for mode, training, learning in (
        ("eval", False, True),
        ("train", True, True),
        ("frozen", False, False),
    ):
        freeze(network, [], batch_norm=mode)
        for _ in range(2):
            network.train()
            apply_modes(network, batch_norm=mode)
            assert all(norm.training is training for norm in norms), mode
            assert all(norm.weight.requires_grad is learning for norm in norms), mode
        assert network.training


def test_thawing_makes_everything_trainable_again() -> None:
    network = build("baseline_resnet")
    freeze(network, stages_below(network, "head"), batch_norm="frozen")
    assert learning_stages(network) == ["head"]
    freeze(network, [])
    assert all(value.requires_grad for value in network.parameters())


def test_dropout_and_drop_path_of_a_frozen_part_are_silent() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", drop_path_rate=0.5, proj_drop_rate=0.5, num_classes=4)
    freeze(network, stages_below(network, "head"))
    network.train()
    apply_modes(network)
    batch = images(160)
    assert torch.equal(network.forward_features(batch), network.forward_features(batch))


def test_everything_frozen_leaves_nothing_to_train() -> None:
    network = build("baseline_cnn")
    freeze(network, list(network_stages(network)))
    assert learning_stages(network) == []
    network.train()
    apply_modes(network, batch_norm="train")
    assert not any(module.training for module in network.modules())


def test_a_network_in_eval_mode_stays_in_it() -> None:
    network = build("baseline_cnn").eval()
    freeze(network, [], batch_norm="train")
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("name", [*NAMES, "densenet121", "vgg11", "inception_resnet_v2"])
def test_the_stages_are_all_the_parameters_in_order(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=4)
    stages = network_stages(network)
    names = [key for members in stages.values() for key in members]
    assert sorted(names) == sorted(key for key, _ in network.named_parameters())
    assert next(iter(stages)) == "stem"
    assert list(stages)[-1] == "head"
    classifier = {id(value) for value in network.get_classifier().parameters()}
    assert {id(network.get_parameter(key)) for key in stages["head"]} == classifier
    first, last = next(iter(dict(network.named_parameters()))), names[-1]
    assert first in stages["stem"]
    assert last in stages["head"]


@pytest.mark.parametrize(("name", "size", "boundary"), NETWORKS, ids=NAMES)
@pytest.mark.parametrize("at_head", [True, False], ids=["head", "inside"])
def test_the_halves_answer_as_the_whole(name: str, size: int, boundary: str, at_head: bool) -> None:
    network = build(name).eval()
    boundary = "head" if at_head else boundary
    batch = images(size)
    with torch.no_grad():
        whole = network(batch)
    network.train()
    freeze(network, stages_below(network, boundary))
    modes = [module.training for module in network.modules()]
    bottom, top = split_at(network, boundary)
    activations = bottom(batch)
    assert not activations.requires_grad
    assert [module.training for module in network.modules()] == modes
    kept = activations.clone()
    logits = top(activations)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(activations, kept), "the upper half overwrites what the caller keeps"
    logits.sum().backward()
    learned = [key for key, value in network.named_parameters() if value.grad is not None]
    stages = network_stages(network)
    below = {key for stage in stages_below(network, boundary) for key in stages[stage]}
    assert set(learned) == {key for key, _ in network.named_parameters()} - below


def test_the_split_drops_out_before_the_final_layer_as_the_network_does() -> None:
    for name in ("baseline_cnn", "tf_efficientnet_lite0", "test_vit", "convnext_atto"):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=4, drop_rate=0.5)
        features = torch.ones(1000, network.head_hidden_size)
        _, top = split_at(network, "head")
        network.get_classifier().weight.data.fill_(1 / network.head_hidden_size)
        network.get_classifier().bias.data.zero_()
        network.train()
        logits = top(features)
        assert logits.std() > 0.01, name
        assert abs(logits.mean().item() - 1) < 0.02, name
        network.eval()
        torch.testing.assert_close(top(features), torch.ones(1000, 4))


def test_the_split_follows_a_new_final_layer() -> None:
    network = build("baseline_cnn").eval()
    bottom, top = split_at(network, "head")
    network.reset_classifier(7)
    assert top(bottom(images(32))).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "boundary", "words"),
    [
        ("resnet18", "layer9", "layer1, layer2"),
        ("resnet18", "stem", "below it"),
        ("densenet121", "features.denseblock3", "head"),
    ],
)
def test_a_boundary_that_cannot_be_cut_is_refused(name: str, boundary: str, words: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    with pytest.raises(NetworkError, match=words):
        split_at(network, boundary)


def test_auxiliary_logits_are_refused_by_the_split_and_learn_with_the_head() -> None:
    with torch.device("meta"):
        network = timm.create_model("inception_v3", aux_logits=True)
    head = network_stages(network)["head"]
    assert any(key.startswith("AuxLogits") for key in head)
    groups = parameter_groups(network, lr=0.1, backbone_lr_factor=0.1)
    fast = {id(p) for group in groups if group["lr"] == 0.1 for p in group["params"]}
    assert fast == {id(p) for name, p in network.named_parameters() if name in head}
    with pytest.raises(NetworkError, match="auxiliary"):
        split_at(network, "head")


def test_an_unknown_stage_is_refused() -> None:
    network = build("baseline_cnn")
    with pytest.raises(NetworkError, match=r"stem, stages.1.*'layer1'"):
        freeze(network, ["layer1"])
