import copy
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from finetune.combining.averaging import (
    average_state_dicts,
    interpolate_state_dicts,
    normalised_coefficients,
)
from finetune.errors import CheckpointMismatchError, UsageError


def network(seed: int, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    for tensor in [*model.parameters(), model[1].running_mean, model[1].running_var]:
        tensor.data = torch.randn(tensor.shape, generator=generator).abs()
    model[1].num_batches_tracked.fill_(7)
    return model.to(dtype)


def states(count: int) -> list[dict[str, Tensor]]:
    return [network(seed).state_dict() for seed in range(count)]


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def test_uniform_average_equals_torchs_averaged_model() -> None:
    members = [network(seed) for seed in range(4)]
    reference = AveragedModel(members[0], use_buffers=True)
    for member in members:
        reference.update_parameters(member)
    expected = reference.module.state_dict()
    averaged = average_state_dicts([member.state_dict() for member in members])
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


def test_average_is_the_float64_mean_rounded_once() -> None:
    members = states(7)
    averaged = average_state_dicts(members)
    stacked = torch.stack([member["0.weight"].double() for member in members])
    torch.testing.assert_close(averaged["0.weight"], stacked.mean(0).float(), rtol=1e-7, atol=0)


def test_average_of_one_and_of_copies_is_itself_bit_for_bit() -> None:
    (member,) = states(1)
    member["3.bias"][0] = -0.0
    alone = average_state_dicts([member])
    assert_identical(alone, member)
    assert torch.signbit(alone["3.bias"][0])
    assert_identical(average_state_dicts([member] * 3), member)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_are_kept(dtype: torch.dtype) -> None:
    members = [network(seed, dtype=dtype).state_dict() for seed in range(3)]
    averaged = average_state_dicts(members)
    assert {name: tensor.dtype for name, tensor in averaged.items()} == {
        name: tensor.dtype for name, tensor in members[0].items()
    }
    expected = sum(member["0.weight"].double() for member in members) / 3
    torch.testing.assert_close(averaged["0.weight"], expected.to(dtype), rtol=1e-15, atol=0)


@given(order=st.permutations(range(4)), shares=st.lists(st.floats(0.1, 5), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_order_of_members_does_not_matter(order: list[int], shares: list[float]) -> None:
    members = states(4)
    for index, member in enumerate(members):
        member["1.num_batches_tracked"] = torch.tensor(index % 2)
    straight = average_state_dicts(members, shares)
    shuffled = average_state_dicts([members[i] for i in order], [shares[i] for i in order])
    for name, tensor in straight.items():
        torch.testing.assert_close(tensor, shuffled[name], rtol=1e-6, atol=1e-7)


def test_one_hot_coefficients_return_that_member_bit_for_bit() -> None:
    members = states(3)
    for hot in range(3):
        coefficients = [float(index == hot) for index in range(3)]
        assert_identical(average_state_dicts(members, coefficients), members[hot])


def test_interpolation_equals_its_ends_bit_for_bit_and_the_line_between() -> None:
    start, end = states(2)
    start["1.num_batches_tracked"] = torch.tensor(100)
    assert_identical(interpolate_state_dicts(start, end, 0.0), start)
    assert_identical(interpolate_state_dicts(start, end, 1.0), end)
    quarter = interpolate_state_dicts(start, end, 0.25)
    expected = torch.lerp(start["0.weight"].double(), end["0.weight"].double(), 0.25)
    torch.testing.assert_close(quarter["0.weight"], expected.float())


@pytest.mark.parametrize("coefficient", [-0.1, 1.1, float("nan")])
def test_interpolation_refuses_to_leave_the_line(coefficient: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        interpolate_state_dicts(*states(2), coefficient)


def test_integer_buffers_are_copied_from_the_heaviest_member() -> None:
    members = states(3)
    for member, count in zip(members, (10, 30, 20), strict=True):
        member["1.num_batches_tracked"] = torch.tensor(count)
    heaviest = average_state_dicts(members, [0.2, 0.3, 0.5])["1.num_batches_tracked"]
    equal = average_state_dicts(members)["1.num_batches_tracked"]
    assert heaviest.dtype == torch.int64
    assert (int(heaviest), int(equal)) == (20, 30)


def test_shared_tensors_stay_shared_and_the_result_is_new() -> None:
    members = []
    for member in states(2):
        member["tied"] = member["3.weight"]
        members.append(member)
    before = copy.deepcopy(members)
    averaged = average_state_dicts(members)
    assert averaged["tied"] is averaged["3.weight"]
    averaged["tied"].zero_()
    assert_identical(members[0], before[0])


def test_tensors_that_only_one_member_shares_are_averaged_apart() -> None:
    first, second = states(2)
    first["tied"] = first["3.weight"]
    second["tied"] = second["3.weight"] + 1
    for order in ([first, second], [second, first]):
        averaged = average_state_dicts(order)
        torch.testing.assert_close(averaged["tied"], averaged["3.weight"] + 0.5)


def test_only_one_member_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[dict[str, Tensor]]:
        nonlocal most
        for seed in range(6):
            weight = torch.full((8, 8), float(seed))
            alive.append(weakref.ref(weight))
            yield {"weight": weight}
            del weight
            most = max(most, sum(ref() is not None for ref in alive))

    averaged = average_state_dicts(stream(), [1.0] * 6)
    assert torch.equal(averaged["weight"], torch.full((8, 8), 2.5))
    assert most <= 2  # the one just added and, in the loop's variable, no other


def test_other_names_are_refused_and_listed_with_their_source() -> None:
    first, second = states(2)
    second["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointMismatchError, match=r"b\.ckpt.*extra\.weight"):
        average_state_dicts([first, second], sources=["a.ckpt", "b.ckpt"])


def test_other_shapes_are_refused() -> None:
    first, second = states(2)
    second["3.weight"] = torch.zeros(4, 16)
    with pytest.raises(CheckpointMismatchError, match=r"3\.weight of shape \(5, 16\).*\(4, 16\)"):
        average_state_dicts([first, second])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    first, second = states(2)
    second["0.bias"][1] = value
    with pytest.raises(CheckpointMismatchError, match=r"0\.bias of b\.ckpt"):
        average_state_dicts([first, second], [1, 0], sources=["a.ckpt", "b.ckpt"])


@pytest.mark.parametrize("coefficients", [[1.0], [1, -1], [0, 0], [float("nan"), 1]])
def test_impossible_coefficients_are_refused(coefficients: list[float]) -> None:
    with pytest.raises(UsageError, match="coefficient"):
        normalised_coefficients(coefficients, 2)


def test_coefficients_are_normalised() -> None:
    assert normalised_coefficients([3, 1], 2) == [0.75, 0.25]
    assert normalised_coefficients(None, 4) == [0.25] * 4
    with pytest.raises(UsageError, match="at least one member"):
        normalised_coefficients(None, 0)
