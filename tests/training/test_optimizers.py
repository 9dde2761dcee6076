import math
from collections import Counter

import pytest
import timm
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    SequentialLR,
    StepLR,
)

from finetune.errors import TrainingError, UsageError
from finetune.training.optimizers import create_optimizer, parameter_groups, warmup_cosine

NETWORKS = [
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_convnext",
    "mobilenetv3_small_050",
    "deit_tiny_distilled_patch16_224",
]


def network_of(name: str) -> torch.nn.Module:
    return timm.create_model(name, num_classes=3)


def final_names(network):
    classifier = network.get_classifier()
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    return {name for name, p in network.named_parameters() if id(p) in inside}


@pytest.mark.parametrize(("name", "has_one"), [("adamw", True), ("sgd", True), ("lamb", False)])
def test_optimizers_are_fused_where_there_is_a_kernel(name: str, has_one: bool) -> None:
    for fused in (False, True):
        groups = parameter_groups(network_of("test_resnet"), lr=1e-3)
        optimizer = create_optimizer(groups, name, fused=fused)
        assert all(bool(g.get("fused")) is (fused and has_one) for g in optimizer.param_groups)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_each_trainable_parameter_is_in_exactly_one_group_with_its_own_rate(name, layer_decay):
    network = network_of(name)
    groups = parameter_groups(
        network, lr=0.1, backbone_lr_factor=0.5, weight_decay=0.05, layer_decay=layer_decay
    )
    counted = Counter(id(p) for group in groups for p in group["params"])
    assert set(counted.values()) == {1}
    assert set(counted) == {id(p) for p in network.parameters()}

    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    final = final_names(network)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name in final:
            assert rate[id(parameter)] == 0.1
        elif layer_decay == 1.0:
            assert rate[id(parameter)] == pytest.approx(0.05)
        else:
            assert rate[id(parameter)] <= 0.05 + 1e-12
        if parameter.ndim <= 1:
            assert decay[id(parameter)] == 0
        if parameter_name in final and parameter.ndim > 1:
            assert decay[id(parameter)] == 0.05


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_layer_decay_equals_timms_scales_times_the_rate(name):
    network = network_of(name)
    reference = timm.optim.param_groups_layer_decay(network, weight_decay=0.1, layer_decay=0.6)
    expected = {id(p): 0.2 * g["lr_scale"] for g in reference for p in g["params"]}
    groups = parameter_groups(network, lr=0.2, weight_decay=0.1, layer_decay=0.6)
    found = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert found == pytest.approx(expected)
    assert len(set(found.values())) > 3


def test_parameters_that_the_network_exempts_get_no_decay():
    network = network_of("test_vit")
    groups = parameter_groups(network, lr=0.1, weight_decay=0.05)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert network.no_weight_decay()
    for name, parameter in network.named_parameters():
        if name in network.no_weight_decay():
            assert decay[id(parameter)] == 0


def test_frozen_parameters_are_left_out():
    network = network_of("test_resnet")
    network.requires_grad_(False)
    network.get_classifier().requires_grad_(True)
    groups = parameter_groups(network, lr=0.1, layer_decay=0.7)
    assert [group["name"] for group in groups] == ["final_layer", "final_layer_no_decay"]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # in SequentialLR
@pytest.mark.parametrize("kind", ["ours", "cosine", "step", "exponential", "sequential"])
@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_ratios_between_groups_survive_every_scheduler(kind, optimizer_name):
    network = network_of("test_resnet")
    groups = parameter_groups(network, lr=0.1, backbone_lr_factor=0.3, layer_decay=0.7)
    wanted = [group["lr"] / 0.1 for group in groups]
    optimizer = create_optimizer(groups, optimizer_name)
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
    build = {
        "ours": lambda: warmup_cosine(optimizer, 20, 3),
        "cosine": lambda: CosineAnnealingLR(optimizer, 20),
        "step": lambda: StepLR(optimizer, 3),
        "exponential": lambda: ExponentialLR(optimizer, 0.9),
        "sequential": lambda: SequentialLR(
            optimizer,
            [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 17)],
            milestones=[3],
        ),
    }
    scheduler = build[kind]()
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert [rate / rates[0] for rate in rates] == pytest.approx(wanted)


def test_layer_decay_really_slows_the_lower_layers():
    torch.manual_seed(0)
    network = network_of("test_resnet")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = create_optimizer(parameter_groups(network, lr=1e-3, layer_decay=0.5), "adamw")
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    # Adam's first step is the rate itself wherever the gradient is not tiny.
    moved = {n: (p.detach() - before[n]).abs().max().item() for n, p in network.named_parameters()}
    assert moved["fc.weight"] == pytest.approx(1e-3, rel=0.02)
    assert moved["conv1.0.weight"] < 1e-4


def test_warm_up_then_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_cosine(optimizer, total_steps=10, warmup_steps=3)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[3:10] == pytest.approx([1 + math.cos(math.pi * k / 7) for k in range(7)])
    assert rates[10:] == pytest.approx([0, 0])


def test_scheduler_state_is_plain_and_resumes():
    def fresh():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, warmup_cosine(optimizer, 10, 2)

    optimizer, scheduler = fresh()
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    other_optimizer, other = fresh()
    other.load_state_dict(scheduler.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    for each_optimizer, each in [(optimizer, scheduler), (other_optimizer, other)]:
        each_optimizer.step()
        each.step()
    assert optimizer.param_groups[0]["lr"] == other_optimizer.param_groups[0]["lr"]


def test_mistakes_are_told():
    network = network_of("test_resnet")
    with pytest.raises(UsageError, match="freeze it"):
        parameter_groups(network, lr=0.1, backbone_lr_factor=0)
    with pytest.raises(UsageError, match="layer_decay"):
        parameter_groups(network, lr=0.1, layer_decay=1.5)
    with pytest.raises(UsageError, match="adamw"):
        create_optimizer(parameter_groups(network, lr=0.1), "adamww")
    with pytest.raises(UsageError, match="warm"):
        warmup_cosine(create_optimizer(parameter_groups(network, lr=0.1)), 10, 10)
    network.requires_grad_(False)
    with pytest.raises(TrainingError, match="trainable"):
        parameter_groups(network, lr=0.1)


def test_the_rate_falls_to_zero_in_each_cycle_and_starts_anew():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = warmup_cosine(optimizer, 30, 3, cycles=3)
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[10] == rates[20] == 1.0
    assert all(rates[end] < 0.06 for end in (9, 19, 29))
    assert rates[10:20] == pytest.approx(rates[20:30])
    assert optimizer.param_groups[0]["lr"] == 0
    with pytest.raises(UsageError, match="shorten the warm-up"):
        warmup_cosine(optimizer, 30, 10, cycles=3)
