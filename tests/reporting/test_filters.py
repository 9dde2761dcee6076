"""Planted filters are judged rightly, and planted patterns are found where they are."""

import numpy as np
import pytest
import torch
from torch import nn

from finetune.errors import NetworkError
from finetune.networks.geometry import Window, stack_field
from finetune.reporting.filters import (
    activations_figure,
    filter_quality,
    filters_figure,
    first_filters,
    layer_activations,
    patches_figure,
    top_patches,
)
from finetune.reporting.style import to_png

PNG = b"\x89PNG"


def test_edges_are_smooth_noise_is_noisy_and_nothing_is_dead() -> None:
    edge = np.zeros((3, 7, 7))
    edge[:, :, :3], edge[:, :, 4:] = -1, 1
    noise = np.random.default_rng(0).normal(size=(40, 3, 7, 7))
    filters = np.concatenate([edge[None], 1e-4 * edge[None], noise])
    quality = filter_quality(filters)
    assert quality.dead.tolist() == [False, True] + [False] * 40
    assert not quality.noisy[:2].any()
    assert quality.noisy[2:].mean() > 0.95
    assert quality.smoothness[0] > 0.8
    assert abs(quality.smoothness[2:].mean()) < 0.05


def test_all_zero_filters_are_dead_and_single_pixels_have_no_smoothness() -> None:
    assert filter_quality(np.zeros((4, 3, 3, 3))).dead.all()
    quality = filter_quality(np.ones((4, 3, 1, 1)))
    assert quality.smoothness is None
    assert not quality.noisy.any()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_grid_shows_every_filter(channels: int) -> None:
    weights = np.random.default_rng(0).normal(size=(10, channels, 3, 3))
    figure = filters_figure({"before": weights, "after": weights * 0})
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("before\n10 filters")
    assert "100 % dead" in titles[1]
    image = np.asarray(figure.axes[0].images[0].get_array())
    # 4 columns and 3 rows of 24 pixels with lines of 2 between them.
    assert image.shape == (3 * 26 - 2, 4 * 26 - 2, 3)
    assert to_png(figure).startswith(PNG)


def test_the_first_convolution_is_found_and_copied() -> None:
    network = nn.Sequential(nn.Flatten(0, 0), nn.Conv2d(3, 4, 5), nn.Conv2d(4, 2, 3))
    filters = first_filters(network)
    np.testing.assert_allclose(filters, network[1].weight.detach().numpy())
    filters[:] = 0
    assert network[1].weight.abs().sum() > 0
    with pytest.raises(NetworkError, match="convolutions"):
        first_filters(nn.Linear(2, 2))


def detector() -> tuple[nn.Module, np.ndarray]:
    """A network whose first channel answers to one pattern, at stride 2, after a 1x1 layer."""
    pattern = np.array([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=np.float32)
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 2, 3, 2, 1, bias=False))
    network[0].weight.data.fill_(1)
    network[1].weight.data[0, 0] = torch.from_numpy(pattern * 2 - 1)
    network[1].weight.data[1, 0] = 0.1
    return network, pattern


def test_the_planted_pattern_is_the_top_patch() -> None:
    network, pattern = detector()
    images = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    images[4, 0, 7:10, 3:6] = torch.from_numpy(pattern)
    field = stack_field([Window(1), Window(3, 2, 1)])
    batches = [images[:3], images[3:5], images[5:]]
    patches = top_patches(network, "1", batches, fields=(field, field), channels=[0, 1], count=3)
    best = patches[0][0]
    assert best.image_index == 4
    assert best.box == (7, 10, 3, 6)
    np.testing.assert_allclose(best.pixels[0].numpy(), pattern)
    assert best.activation == pytest.approx(5)
    for row in patches.values():
        answers = [patch.activation for patch in row]
        assert answers == sorted(answers, reverse=True)
        assert len({patch.image_index for patch in row}) == 3
    assert to_png(patches_figure(patches)).startswith(PNG)


def test_the_best_are_those_of_all_batches() -> None:
    network, _ = detector()
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    field = stack_field([Window(1), Window(3, 2, 1)])
    patches = top_patches(
        network, "1", images.split(6), fields=(field, field), channels=[0], count=4
    )
    everything = layer_activations(network, "1", images)[:, 0].amax((1, 2))
    expected = everything.topk(4)
    assert [patch.image_index for patch in patches[0]] == expected.indices.tolist()


def test_activations_are_those_of_eval_mode_and_modes_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    images = torch.rand(2, 3, 8, 8)
    first = layer_activations(network, "2", images)
    assert torch.equal(first, layer_activations(network, "2", images))
    assert all(module.training for module in network.modules())
    assert network[1].num_batches_tracked == 0
    figure = activations_figure(images[0], first[0])
    assert to_png(figure).startswith(PNG)


def test_a_layer_without_places_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(NetworkError, match="convolutional"):
        layer_activations(network, "1", torch.rand(1, 3, 2, 2))
