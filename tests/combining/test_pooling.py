import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from finetune.combining.pooling import (
    Pooling,
    fit_coefficients,
    majority_vote,
    mean_logits,
    mean_probabilities,
    pool,
)
from finetune.errors import UsageError
from finetune.tasks.held_out_loss import held_out_loss, held_out_losses
from finetune.tasks.multiclass import MULTICLASS

METHODS: list[Pooling] = ["mean", "geometric", "vote"]
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 7), st.integers(0, 10**6))


def logits(shape: tuple[int, int, int, int], *, scale: float = 3.0) -> Tensor:
    members, images, classes, seed = shape
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(members, images, classes, generator=generator)


def shares(shape: tuple[int, int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(shape[3] + 1)
    return torch.rand(shape[0], generator=generator) + 0.01


@pytest.mark.parametrize("method", METHODS)
@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_rows_sum_to_one_and_members_order_does_not_matter(
    method: Pooling, shape: tuple[int, int, int, int]
) -> None:
    members, weights = logits(shape), shares(shape)
    pooled = MULTICLASS.probabilities(pool(MULTICLASS, members, weights, method=method))
    assert pooled.shape == members.shape[1:]
    torch.testing.assert_close(pooled.sum(-1), torch.ones(len(pooled)))
    order = torch.arange(len(members)).flip(0)
    turned = pool(MULTICLASS, members[order], weights[order], method=method)
    torch.testing.assert_close(MULTICLASS.probabilities(turned), pooled)


@pytest.mark.parametrize("method", METHODS)
@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_a_row_of_logits_changes_nothing(
    method: Pooling, shape: tuple[int, int, int, int]
) -> None:
    members, weights = logits(shape).double(), shares(shape)
    shifted = members + 100 * torch.randn(*members.shape[:2], 1, dtype=torch.float64)
    torch.testing.assert_close(
        pool(MULTICLASS, shifted, weights, method=method).softmax(-1),
        pool(MULTICLASS, members, weights, method=method).softmax(-1),
    )


@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_mean_equals_numpys_average(shape: tuple[int, int, int, int]) -> None:
    members, weights = logits(shape), shares(shape)
    values = members.double().softmax(-1)
    expected = np.average(values.numpy(), axis=0, weights=weights.double().numpy())
    np.testing.assert_allclose(mean_probabilities(values, weights).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(
        pool(MULTICLASS, members, weights).double().softmax(-1).numpy(), expected, atol=1e-12
    )


@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_the_mean_of_logits_is_the_geometric_mean(shape: tuple[int, int, int, int]) -> None:
    raw, weights = logits(shape), shares(shape)
    normal = (weights.double() / weights.double().sum()).view(-1, 1, 1)
    product = (raw.double().softmax(-1) ** normal).prod(dim=0)
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(mean_logits(raw, weights).softmax(-1), expected)


@pytest.mark.parametrize("method", ["mean", "geometric"])
@given(shape=SHAPES)
@settings(max_examples=50, deadline=None)
def test_pooling_is_never_worse_than_the_mean_member(
    method: Pooling, shape: tuple[int, int, int, int]
) -> None:
    members, weights = logits(shape, scale=100.0).double(), shares(shape).double()
    labels = torch.arange(shape[1]) % shape[2]
    nll = held_out_losses(members, labels, "nll")
    combined = held_out_loss(pool(MULTICLASS, members, weights, method=method), labels, "nll")
    assert combined <= (weights / weights.sum() * nll).sum() + 1e-9


@pytest.mark.parametrize("method", ["mean", "geometric"])
def test_one_member_is_returned_bit_for_bit(method: Pooling) -> None:
    members = logits((3, 20, 4, 0))
    assert torch.equal(pool(MULTICLASS, members[:1], method=method), members[0])
    assert torch.equal(pool(MULTICLASS, members, [0, 2.0, 0], method=method), members[1])


@pytest.mark.parametrize(("method", "expected"), [("mean", 4000 + np.log(2)), ("geometric", 4000)])
def test_an_answer_too_sure_for_a_float_keeps_its_likelihood(
    method: Pooling, expected: float
) -> None:
    """In the mean the surer of two wrong members hardly counts; in logits both do."""
    members = torch.tensor([[[2000.0, -2000.0]], [[3000.0, -3000.0]]])
    if method == "geometric":
        members[1] = members[0]
    found = held_out_loss(pool(MULTICLASS, members, method=method), torch.tensor([1]), "nll")
    assert found == pytest.approx(expected, rel=1e-12)


def test_vote_counts_shares() -> None:
    members = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]])
    found = MULTICLASS.probabilities(majority_vote(members))
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 2 / 3]]))
    torch.testing.assert_close(majority_vote(members, [2, 1, 0.5]).argmax(-1), torch.tensor([0]))


def test_a_tied_vote_goes_to_the_larger_mean_probability_then_to_the_lower_index() -> None:
    surer = torch.tensor([[[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]]]).log()
    assert majority_vote(surer).argmax(-1).tolist() == [1]
    even = torch.tensor([[[0.0, 0.2, 0.8]], [[0.0, 0.8, 0.2]]]).log()
    assert majority_vote(even).argmax(-1).tolist() == [1]
    # A class without votes never wins, however large its mean.
    third = torch.tensor([[[0.51, 0.49, 0.0]], [[0.0, 0.48, 0.52]]]).log()
    assert majority_vote(third).argmax(-1).tolist() == [2]


def test_impossible_coefficients_are_refused() -> None:
    with pytest.raises(UsageError, match="one coefficient for each of 2 members"):
        mean_probabilities(logits((2, 1, 2, 0)).softmax(-1), [1.0])


@pytest.mark.parametrize("seed", range(5))
def test_learned_coefficients_reach_the_optimum_of_an_independent_solver(seed: int) -> None:
    raw = logits((4, 200, 3, seed), scale=1.5).double()
    members = raw.softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(0.7 * members[0] + 0.3 * members[1], 1, generator=generator)[:, 0]
    true = members[:, torch.arange(200), truth].numpy()

    def nll(weights: np.ndarray) -> float:
        return float(-np.log(weights @ true).mean())

    reference = minimize(
        nll,
        np.full(4, 0.25),
        method="SLSQP",
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-12},
    )
    found = fit_coefficients(raw, truth).numpy()
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert nll(found) <= reference.fun + 1e-6


def test_a_prior_pulls_learned_coefficients_to_equal_ones() -> None:
    members = logits((3, 50, 4, 1))
    labels = members[0].argmax(-1)
    free = fit_coefficients(members, labels)
    shrunk = fit_coefficients(members, labels, prior=1e6)
    assert free[0] > 0.9
    torch.testing.assert_close(shrunk, torch.full((3,), 1 / 3).double(), atol=1e-3, rtol=0)
