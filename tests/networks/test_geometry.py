"""Every formula against torch itself, on random shapes."""

import itertools
import math

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from finetune.networks import baselines as _register  # noqa: F401
from finetune.networks.geometry import (
    Field,
    Window,
    convolution_cost,
    dense_cost,
    joined,
    local_cost,
    output_size,
    same_size,
    stack_field,
)
from finetune.networks.layers import field_of, layer_table

windows = st.builds(
    Window,
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
)


@given(size=st.integers(1, 40), window=windows)
def test_output_size_is_that_of_a_convolution(size: int, window: Window) -> None:
    image, kernel = torch.zeros(1, 1, size), torch.zeros(1, 1, window.kernel)
    if window.span > size + 2 * window.padding:
        with pytest.raises(ValueError, match="at least"):
            output_size(size, window)
        return
    result = functional.conv1d(image, kernel, None, window.stride, window.padding, window.dilation)
    assert output_size(size, window) == result.shape[-1]


@given(size=st.integers(1, 40), window=windows, ceil_mode=st.booleans())
def test_output_size_is_that_of_pooling(size: int, window: Window, ceil_mode: bool) -> None:
    assume(window.padding <= window.kernel // 2)
    pool = nn.MaxPool1d(
        window.kernel, window.stride, window.padding, window.dilation, ceil_mode=ceil_mode
    )
    try:
        expected = pool(torch.zeros(1, 1, size)).shape[-1]
    except RuntimeError:
        with pytest.raises(ValueError, match="at least"):
            output_size(size, window, ceil_mode=ceil_mode)
        return
    assert output_size(size, window, ceil_mode=ceil_mode) == expected


@given(size=st.integers(1, 60), kernel=st.integers(1, 7), stride=st.integers(1, 4))
def test_the_notes_formulas(size: int, kernel: int, stride: int) -> None:
    """ceil(N / k) with "same" padding, ceil((N - l + 1) / k) without."""
    assume(kernel <= size)
    same = timm.layers.Conv2dSame(1, 1, kernel, stride)(torch.zeros(1, 1, size, size))
    assert same_size(size, stride) == same.shape[-1] == math.ceil(size / stride)
    valid = math.ceil((size - kernel + 1) / stride)
    assert output_size(size, Window(kernel, stride)) == valid


@given(layers=st.lists(windows, min_size=1, max_size=4), output=st.integers(0, 5))
@settings(max_examples=60)
def test_the_receptive_field_is_where_gradients_arrive(layers: list[Window], output: int) -> None:
    field = stack_field(layers)
    image_size = int(field.high - field.low + 5 * field.jump + 2 * abs(field.low)) + 1
    assume(image_size < 4000)
    image = torch.zeros(1, 1, image_size, dtype=torch.float64, requires_grad=True)
    value = image
    for window in layers:
        assume(window.padding < window.span)  # else an output sees padding alone
        ones = torch.ones(1, 1, window.kernel, dtype=torch.float64)
        value = functional.conv1d(value, ones, None, window.stride, window.padding, window.dilation)
    value[0, 0, output].backward()
    seen = image.grad[0, 0].nonzero()[:, 0]
    assume(len(seen) > 0)
    first, after = field.pixels(output, image_size)
    assert first <= seen.min()
    assert seen.max() < after
    # Away from the border, what is seen begins and ends exactly there.
    if first > 0 and field.low + output * field.jump > abs(field.low):
        assert (seen.min(), seen.max() + 1) == (first, after)


def test_stacked_kernels_see_9_and_27_at_stride_3_but_5_and_7_at_stride_1() -> None:
    assert [stack_field([Window(3, 3)] * n).size for n in (1, 2, 3)] == [3, 9, 27]
    assert [stack_field([Window(3)] * n).size for n in (1, 2, 3)] == [3, 5, 7]


def test_the_centre_lies_in_the_middle() -> None:
    field = stack_field([Window(3, 1, 1), Window(3, 1, 1)])
    assert field == Field(-2, 2, 1)
    assert field.centre(3) == 3
    assert field.pixels(0, 10) == (0, 3)
    assert field.pixels(5, 10) == (3, 8)


def test_branches_see_what_any_of_them_sees() -> None:
    assert joined([Field(-1, 1, 2), Field(0, 4, 2)]) == Field(-1, 4, 2)


def test_the_notes_numbers() -> None:
    assert dense_cost(1000, 1000).parameters == 1_000_000
    assert local_cost(1000, 25).connections == 25_000
    shared = convolution_cost(1, 1, (5, 5), (1, 1000))
    assert (shared.parameters, shared.connections) == (25, 25_000)


@given(
    in_chans=st.integers(1, 4),
    out_chans=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    bias=st.booleans(),
    size=st.integers(4, 9),
)
@settings(max_examples=40)
def test_costs_are_those_of_torch(
    in_chans: int,
    out_chans: int,
    groups: int,
    kernel: tuple[int, int],
    bias: bool,
    size: int,
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = nn.Conv2d(in_chans * groups, out_chans * groups, kernel, groups=groups, bias=bias)
    with FlopCounterMode(display=False) as counter:
        output = layer(torch.zeros(1, in_chans * groups, size, size))
    cost = convolution_cost(
        in_chans * groups,
        out_chans * groups,
        kernel,
        tuple(output.shape[2:]),
        groups=groups,
        bias=bias,
    )
    assert cost.parameters == sum(value.numel() for value in layer.parameters())
    assert 2 * cost.multiply_adds == counter.get_total_flops()


@pytest.mark.parametrize("kernel", [0, -1])
def test_a_window_without_inputs_is_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Window(kernel)


# Published: Araujo et al. 2019, "Computing receptive fields", table 1 (vgg16 and inception_v3);
# resnet18 and resnet50 by the same formula for the stride in the 3x3 convolution.
PUBLISHED = [
    ("vgg16", "features.30", 224, 212, 32),
    ("inception_v3", "Mixed_7c", 299, 1311, 32),
    ("resnet18", "layer4", 224, 435, 32),
    ("resnet50", "layer4", 224, 427, 32),
]


@pytest.mark.parametrize(("name", "layer", "image_size", "size", "jump"), PUBLISHED)
def test_receptive_fields_of_known_networks(
    name: str, layer: str, image_size: int, size: int, jump: int
) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    height, width = field_of(network, layer, image_size)
    assert (height.size, width.size) == (size, size)
    assert (height.jump, width.jump) == (jump, jump)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("baseline_cnn", "stages.1"),
        ("baseline_resnet", "stages.1"),
        ("baseline_inception", "stages.1"),
        ("tf_efficientnet_lite0", "blocks.1"),
        ("convnext_atto", "stages.0"),
    ],
)
def test_gradients_arrive_within_the_field_and_at_its_edges(name: str, layer: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name).eval().double()
    for value in network.parameters():  # small and positive: no ReLU cuts
        value.data = 0.01 * (torch.rand_like(value) + 0.1)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    found = []
    network.get_submodule(layer).register_forward_hook(lambda *call: found.append(call[2]))
    network(image)
    place = found[0].shape[-1] // 2
    found[0][0, :, place, place].sum().backward()
    seen = image.grad.abs().sum((0, 1)).nonzero()
    height, width = field_of(network, layer, 64)
    for axis, field in enumerate((height, width)):
        first, after = field.pixels(place, 64)
        assert first <= seen[:, axis].min()
        assert seen[:, axis].max() < after
        assert seen[:, axis].max() + 1 - seen[:, axis].min() >= 0.6 * (after - first)


@pytest.mark.parametrize(
    "name", ["baseline_mlp", "baseline_inception", "resnet18", "tf_efficientnet_lite0", "test_vit"]
)
def test_the_table_counts_what_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    size = 160 if name == "test_vit" else 96
    network = timm.create_model(name, num_classes=5).eval()
    rows = layer_table(network, size)
    weights = sum(
        value.numel()
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for value in module.parameters()
    )
    assert sum(row.cost.parameters for row in rows) == weights
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    attention = {torch.ops.aten.bmm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}
    flops = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op not in attention)
    assert 2 * sum(row.cost.multiply_adds for row in rows) == flops
    assert rows[-1].output == (5,)
    assert rows[-1].receptive_field is None


def test_fields_only_grow_and_the_image_shrinks() -> None:
    rows = layer_table(timm.create_model("baseline_cnn"), 64)
    local = [row for row in rows if row.receptive_field is not None]
    for before, after in itertools.pairwise(local):
        assert after.receptive_field >= before.receptive_field
        assert after.output[-1] <= before.output[-1]


def test_a_gate_does_not_widen_what_a_place_sees_but_attention_does() -> None:
    gated = field_of(timm.create_model("mobilenetv3_small_050"), "blocks.1", 224)
    assert gated[0].size < 224
    rows = layer_table(timm.create_model("test_vit"), 160)
    assert rows[0].receptive_field == (16, 16)
    assert all(row.receptive_field is None for row in rows[2:])


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, stride=2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, stride=1, ceil_mode=True),
        nn.AdaptiveAvgPool2d(5),  # of 13: windows of 3 and 4
        nn.AdaptiveMaxPool2d(8),
    ],
    ids=str,
)
def test_the_table_says_what_poolings_read(layer: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), layer)
    (table,) = [row for row in layer_table(network, 13, in_chans=1) if row.name == "1"]
    lit = torch.eye(13)[:, None, :, None].expand(13, 1, 13, 13)  # image i: row i alone is white
    read = layer(lit)[:, 0, :, 0] > 0  # (image row, output row)
    rows_read = [column.nonzero() for column in read.T]
    assert max(int(rows.max() - rows.min()) + 1 for rows in rows_read) == table.receptive_field[0]
