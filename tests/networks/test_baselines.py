"""The baselines' options do what they say."""

import pytest
import timm
import torch
from torch import nn

from finetune.errors import NetworkError, PretrainedWeightsError
from finetune.networks import baselines as _register  # noqa: F401
from finetune.networks.blocks import InceptionBlock, LayerStyle, ResidualBlock, pooling

CONVOLUTIONAL = ["baseline_cnn", "baseline_resnet", "baseline_inception"]


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in network.modules())


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "baseline_mlp"])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 64)])
def test_any_image_size_and_channels(name: str, in_chans: int, size: tuple[int, int]) -> None:
    network = timm.create_model(name, size="tiny", num_classes=5, in_chans=in_chans).eval()
    assert network(torch.rand(2, in_chans, *size)).shape == (2, 5)


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "baseline_mlp"])
def test_sizes_grow(name: str) -> None:
    counts = [
        sum(value.numel() for value in timm.create_model(name, size=size).parameters())
        for size in ("tiny", "small", "base")
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] / 5
    with pytest.raises(NetworkError, match="'tiny', 'small', 'base'"):
        timm.create_model(name, size="huge")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": False},
        {"pool": "average"},
        {"pool": "sum"},
        {"pool": "sum", "batch_norm": False},
        {"downsample": "stride"},
        {"kernel_size": 5},
        {"hidden_size": 32, "drop_rate": 0.3},
        {"global_pool": "max"},
    ],
    ids=str,
)
def test_options_change_the_network_and_it_still_starts_well(name: str, options: dict) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, size="tiny", num_classes=10, **options)
    logits = network(torch.randn(8, 3, 32, 32))
    # A fresh network knows nothing: near-equal probabilities, whatever its options.
    loss = nn.functional.cross_entropy(logits, torch.arange(8))
    assert abs(loss.item() - torch.tensor(10.0).log().item()) < 0.35
    assert (norms(network) == 0) is (options.get("batch_norm") is False)
    pools = [m for m in network.stages.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    if options.get("downsample") == "stride":
        assert all(pool.kernel_size == 3 for pool in pools)  # inception's own branch
        assert network.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == 8
    if "hidden_size" in options:
        assert network.head_hidden_size == 32


def test_stride_and_pooling_give_the_same_sizes() -> None:
    for size in (8, 9, 15, 64):
        pooled, strided = (
            timm.create_model("baseline_resnet", size="tiny", downsample=way).eval()
            for way in ("pool", "stride")
        )
        image = torch.randn(1, 3, size, size)
        assert pooled.forward_features(image).shape == strided.forward_features(image).shape


def test_without_padding_the_image_shrinks() -> None:
    network = timm.create_model("baseline_cnn", size="tiny", padding="valid", pool="max").eval()
    # 32 -> 30, pooled 15 -> 13, pooled 7 -> 5
    assert network.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == 5


@pytest.mark.parametrize("kind", ["max", "average", "sum"])
def test_pooling_is_what_it_says(kind: str) -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    windows = [image[0, 0, r : r + 2, c : c + 2] for r in (0, 2) for c in (0, 2)]
    reduce = {"max": torch.amax, "average": torch.mean, "sum": torch.sum}[kind]
    expected = torch.stack([reduce(window) for window in windows]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(pooling(kind)(image), expected)


def test_average_and_sum_pooling_are_convolutions_with_a_constant_kernel() -> None:
    image = torch.randn(2, 1, 8, 8)
    ones = torch.ones(1, 1, 2, 2)
    convolved = nn.functional.conv2d(image, ones, stride=2)
    torch.testing.assert_close(pooling("sum")(image), convolved)
    torch.testing.assert_close(pooling("average")(image), convolved / 4)


def test_an_untrained_residual_block_passes_its_input_on() -> None:
    for batch_norm in (True, False):
        block = ResidualBlock(8, 8, stride=1, style=LayerStyle(batch_norm=batch_norm))
        image = torch.rand(2, 8, 5, 5)
        torch.testing.assert_close(block(image), image)


def test_two_3x3_see_as_much_as_a_5x5_with_fewer_weights() -> None:
    style = {"batch_norm": False}
    single = InceptionBlock(16, 64, stride=1, style=LayerStyle(five_by_five="single", **style))
    double = InceptionBlock(16, 64, stride=1, style=LayerStyle(five_by_five="two_3x3", **style))
    for block, reach in ((single, 2), (double, 2)):
        for value in block.parameters():
            value.data.fill_(0.1)
        image = torch.zeros(1, 16, 11, 11, requires_grad=True)
        block.branch5(image + 1)[0, :, 5, 5].sum().backward()
        seen = image.grad.abs().sum((0, 1)).nonzero()
        assert seen.min() == 5 - reach
        assert seen.max() == 5 + reach
    wide = [m.weight for m in single.branch5.modules() if isinstance(m, nn.Conv2d)][1]
    narrow = [m.weight for m in double.branch5.modules() if isinstance(m, nn.Conv2d)][1:]
    assert wide.shape[2:] == (5, 5)
    assert [tuple(w.shape[2:]) for w in narrow] == [(3, 3), (3, 3)]


def test_stochastic_depth_leaves_branches_out_only_while_training() -> None:
    torch.manual_seed(0)
    network = timm.create_model("baseline_resnet", size="tiny", drop_path_rate=0.5)
    for value in network.parameters():
        value.data.add_(0.05)
    image = torch.randn(1, 3, 16, 16).repeat(16, 1, 1, 1)
    assert network.train().forward_features(image).std(0).max() > 1e-3
    assert network.eval().forward_features(image).std(0).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("baseline_cnn", {"kernel_size": 4}, "odd"),
        ("baseline_resnet", {"padding": "valid"}, "baseline_cnn"),
        ("baseline_inception", {"drop_path_rate": 0.1}, "baseline_resnet"),
        ("baseline_cnn", {"pool": "mean"}, "'max', 'average', 'sum'"),
        ("baseline_cnn", {"downsample": "strides"}, "'pool', 'stride'"),
        ("baseline_cnn", {"padding": "none"}, "'same', 'valid'"),
        ("baseline_inception", {"five_by_five": "2x3"}, "'single', 'two_3x3'"),
        ("baseline_resnet", {"global_pool": "average"}, "global_pool to be one of"),
        ("baseline_cnn", {"hidden_size": -1}, "at least 0, found -1"),
        ("baseline_mlp", {"grid_size": 0}, "at least 1, found 0"),
    ],
)
def test_options_that_cannot_work_are_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        timm.create_model(name, **options)


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(PretrainedWeightsError, match="from scratch"):
        timm.create_model("baseline_cnn", pretrained=True)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "catavgmax"])
def test_pooling_can_be_chosen_later_as_well_as_at_first(name: str, kind: str) -> None:
    torch.manual_seed(0)
    built = timm.create_model(name, size="tiny", num_classes=5, global_pool=kind).eval()
    changed = timm.create_model(name, size="tiny", num_classes=3).eval()
    changed.reset_classifier(5, kind)
    changed.load_state_dict(built.state_dict())
    images = torch.rand(2, 3, 20, 20)
    assert changed.head_hidden_size == built.head_hidden_size == built.fc.in_features
    assert torch.equal(changed(images), built(images))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_without_pooling_the_places_stay_and_classes_are_refused(name: str) -> None:
    images = torch.rand(2, 3, 20, 20)
    built = timm.create_model(name, size="tiny", num_classes=0, global_pool="")
    reset = timm.create_model(name, size="tiny")
    reset.reset_classifier(0, "")
    assert built(images).shape == reset(images).shape == (2, 64, 5, 5)
    with pytest.raises(NetworkError, match='take "avg", or 0 classes'):
        timm.create_model(name, size="tiny", num_classes=5, global_pool="")


def test_pooling_to_another_width_is_refused_before_a_hidden_layer() -> None:
    network = timm.create_model("baseline_cnn", size="tiny", hidden_size=8, num_classes=5)
    with pytest.raises(NetworkError, match=r"to 64 values.*gives 128"):
        network.reset_classifier(5, "catavgmax")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_timm_takes_features_of_every_stage(name: str, size: str) -> None:
    network = timm.create_model(name, size=size, features_only=True).eval()
    reductions = network.feature_info.reduction()
    assert len(reductions) == {"tiny": 3, "small": 4}[size]
    for reduction, channels, features in zip(
        reductions, network.feature_info.channels(), network(torch.rand(1, 3, 64, 64)), strict=True
    ):
        assert features.shape == (1, channels, 64 // reduction, 64 // reduction)
