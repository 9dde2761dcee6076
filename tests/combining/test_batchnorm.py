import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.combining.batchnorm import reestimate_batchnorm
from finetune.errors import UsageError


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(count, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("sizes", [(10,), (9, 1), (4, 4, 2), (1, 1, 8)])
def test_statistics_of_one_layer_are_those_of_all_images_whatever_the_batches(
    sizes: tuple[int, ...],
) -> None:
    layer = nn.BatchNorm2d(3).eval()
    everything = images(10)
    assert reestimate_batchnorm(layer, everything.split(sizes)) == 10
    flat = everything.transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean, flat.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, flat.var(1), rtol=1e-5, atol=1e-5)
    assert int(layer.num_batches_tracked) == len(sizes)


def test_equal_batches_equal_torchs_update_bn_in_the_mean() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    theirs.load_state_dict(ours.state_dict())
    batches = list(images(12).split(4))
    reestimate_batchnorm(ours, batches)
    torch.optim.swa_utils.update_bn(batches, theirs)
    for layer in (1, 3):
        torch.testing.assert_close(ours[layer].running_mean, theirs[layer].running_mean)


def test_modes_momenta_and_parameters_are_restored() -> None:
    network = timm.create_model("test_resnet", num_classes=3, drop_rate=0.5).train()
    frozen = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    before = {
        name: (m.training, getattr(m, "momentum", None)) for name, m in network.named_modules()
    }
    parameters = [p.clone() for p in network.parameters()]
    reestimate_batchnorm(network, [images(4).repeat(1, 1, 4, 4)])
    after = {
        name: (m.training, getattr(m, "momentum", None)) for name, m in network.named_modules()
    }
    assert before == after
    assert all(torch.equal(a, b) for a, b in zip(parameters, network.parameters(), strict=True))
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_dropout_stays_off_so_the_answer_is_repeatable() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    reestimate_batchnorm(network, [images(6)])
    expected = images(6).transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(network[1].running_mean, expected)


def test_an_error_half_way_leaves_everything_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(network, [images(4), torch.zeros(2, 5, 8, 8)])
    assert network[1].training
    assert network[1].momentum == 0.1
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_one_value_a_channel_does_not_fail() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    assert reestimate_batchnorm(network, images(5).split((4, 1))) == 5
    expected = images(5).mean((2, 3))
    torch.testing.assert_close(network[1].running_mean, expected.mean(0))
    torch.testing.assert_close(network[1].running_var, expected.var(0))


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x], lambda x: {"images": x}])
def test_batches_of_loaders_are_understood(wrap: object) -> None:
    layer = nn.BatchNorm2d(3)
    assert reestimate_batchnorm(layer, [wrap(images(2))]) == 2  # type: ignore[operator]


def test_networks_without_batch_norm_are_left_alone() -> None:
    network = timm.create_model("test_vit", num_classes=3)
    assert reestimate_batchnorm(network, iter(())) == 0


def test_no_images_are_refused() -> None:
    with pytest.raises(UsageError, match="training images"):
        reestimate_batchnorm(nn.BatchNorm2d(3), [])
