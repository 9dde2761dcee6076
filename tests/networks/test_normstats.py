"""The lesson on batch norm, as facts."""

import copy

import pytest
import timm
import torch
from torch import nn

from finetune.networks import baselines as _register  # noqa: F401
from finetune.networks.freezing import apply_modes, freeze
from finetune.networks.normstats import norm_statistics


def images() -> torch.Tensor:
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 + 1


def adapted(seed: int) -> nn.Module:
    """A network whose statistics are exactly those of the images."""
    torch.manual_seed(seed)
    network = timm.create_model("baseline_cnn", size="tiny", num_classes=3)
    torch.optim.swa_utils.update_bn([images()], network)
    return network


def test_an_untrained_memory_is_wrong_and_an_adapted_one_is_right() -> None:
    torch.manual_seed(0)
    fresh = timm.create_model("baseline_cnn", size="tiny")
    first = norm_statistics(fresh, images())[0]
    convolved = fresh.stem[0](images()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.batch_mean, convolved.mean(1), rtol=1e-4, atol=1e-5)
    assert max(entry.shift for entry in norm_statistics(fresh, images())) > 0.3
    for entry in norm_statistics(adapted(0), images()):
        assert entry.shift < 0.01, entry.name
        assert entry.spread == pytest.approx(1, abs=0.02)


def test_freezing_keeps_the_memory_and_training_replaces_it() -> None:
    for batch_norm, moves in (("eval", False), ("train", True)):
        network = adapted(0)
        before = copy.deepcopy(network.state_dict())
        freeze(network, [], batch_norm=batch_norm)
        network.train()
        apply_modes(network, batch_norm=batch_norm)
        network(images() * 3)
        moved = [
            key
            for key, value in network.state_dict().items()
            if "running" in key and not torch.equal(value, before[key])
        ]
        assert bool(moved) is moves


def test_averaging_breaks_the_memory_and_reestimation_mends_it() -> None:
    first, second = adapted(1), adapted(2)
    theirs = second.state_dict()
    average = {
        key: (value + theirs[key]) / 2 if value.is_floating_point() else value
        for key, value in first.state_dict().items()
    }
    first.load_state_dict(average)
    last = norm_statistics(first, images())[-1]
    # Averaged filters cancel in part: less comes in than either memory expects.
    assert last.spread < 0.8
    torch.optim.swa_utils.update_bn([images()], first)
    assert norm_statistics(first, images())[-1].spread == pytest.approx(1, abs=0.02)


def test_the_network_is_left_as_it_was() -> None:
    network = adapted(0).train()
    before = copy.deepcopy(network.state_dict())
    norm_statistics(network, images())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
