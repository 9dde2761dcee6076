"""A number an image: its figures are scikit-learn's and scipy's, its unit comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from finetune.errors import TrainingError, UsageError
from finetune.tasks.number_scores import number_scores, weighted_number_scores
from finetune.tasks.regression import REGRESSION as TASK
from finetune.tasks.units import Unit

SEEDS = st.integers(0, 2**31)


def numbers(images: int, seed: int, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(40, 12, size=(images, 1))
    answers = truth + rng.normal(0, 5, size=(images, 1))
    if ties:
        truth, answers = truth.round(-1), answers.round(-1)
    return torch.tensor(answers, dtype=torch.float32), torch.tensor(truth, dtype=torch.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(12, 80), SEEDS, st.booleans())
def test_figures_equal_scikit_learn_and_scipy(images: int, seed: int, ties: bool) -> None:
    answers, truth = numbers(images, seed, ties)
    figures = TASK.figures(answers, truth)
    one, other = truth[:, 0].double().numpy(), answers[:, 0].double().numpy()
    assert figures["mae"] == pytest.approx(mean_absolute_error(one, other))
    assert figures["rmse"] == pytest.approx(root_mean_squared_error(one, other))
    assert figures["r2"] == pytest.approx(r2_score(one, other))
    if len(np.unique(one)) > 1 and len(np.unique(other)) > 1:
        assert figures["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    assert figures["mae"] == pytest.approx(float(TASK.losses(answers, truth).mean()))
    assert figures["mae"] == pytest.approx(TASK.held_out_loss(answers, truth, "nll"))


def test_a_mixture_is_the_weighted_mean_also_of_views() -> None:
    views = torch.randn(2, 5, 7, 1)  # of five members' answers
    found = TASK.mixture(views, [0.25, 0.75])
    torch.testing.assert_close(found, (0.25 * views[0] + 0.75 * views[1]).double())


def test_of_equal_numbers_nothing_can_be_told() -> None:
    same = torch.full((6, 1), 3.0)
    assert TASK.figures(same, same) == {"mae": 0, "rmse": 0, "r2": 0, "spearman": 0}


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 30), SEEDS, st.booleans())
def test_an_image_that_counts_twice_is_two_images(images: int, seed: int, ties: bool) -> None:
    answers, truth = (each[:, 0].double().numpy() for each in numbers(images, seed, ties))
    counts = np.random.default_rng(seed).integers(0, 4, (3, images))
    counts[:, 0] += 1
    found = weighted_number_scores(answers, truth, counts.astype(float))
    for row, often in zip(found, counts, strict=True):
        expected = number_scores(np.repeat(answers, often), np.repeat(truth, often))
        np.testing.assert_allclose(row, list(expected.values()), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 40), SEEDS, st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_unit_comes_back(images: int, seed: int, scale: float) -> None:
    _, truth = numbers(images, seed)
    unit = Unit(1)
    unit.learn(truth * scale)
    plain = unit.standardised(truth * scale)
    assert float(plain.mean()) == pytest.approx(0, abs=1e-4)
    assert float(plain.std(correction=0)) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(unit(plain), truth * scale, rtol=1e-5, atol=0)
    again = Unit(1)
    again.load_state_dict(unit.state_dict())
    assert torch.equal(again(plain), unit(plain))
    assert unit(plain.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2, 3, 4], "at least 5 training images"),
        ([2.0] * 9, "found 2 for all 9 training images"),
        ([1e7 + i for i in range(9)], "take a common amount off"),
    ],
)
def test_numbers_that_teach_nothing_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Unit(1).learn(TASK.collate(values))


def test_the_loss_is_torchs_huber_loss_and_one_wrong_number_moves_little() -> None:
    answers, truth = torch.zeros(4, 1, requires_grad=True), torch.tensor([[0.5], [-0.5], [1], [99]])
    loss = TASK.loss(label_smoothing=0, focal_gamma=0)(answers, truth)
    torch.testing.assert_close(loss, torch.nn.HuberLoss()(answers, truth))
    loss.backward()
    assert answers.grad is not None
    assert answers.grad[3] == answers.grad[2]


def test_members_answer_by_their_mean() -> None:
    first, second = numbers(7, 0)
    mixed = TASK.mixture(torch.stack([first, second]), [0.25, 0.75])
    torch.testing.assert_close(mixed, (first / 4 + second * 0.75).double(), rtol=1e-6, atol=0)


def test_targets_of_a_file_are_checked() -> None:
    assert TASK.unexpected(TASK.collate([1.0, 2.5]), 2, 1) is None
    for odd in (
        torch.zeros(2),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.full((2, 1), torch.nan),
    ):
        assert TASK.unexpected(odd, 2, 1) is not None


@pytest.mark.parametrize("asked", ["choices", "outputs_of", "confidence"])
def test_there_is_nothing_to_choose_from(asked: str) -> None:
    with pytest.raises(UsageError, match=r"found numbers \(the task regression\)"):
        getattr(TASK, asked)(torch.zeros(3, 1))
    with pytest.raises(UsageError, match="the mean absolute error decides"):
        TASK.held_out_loss(torch.zeros(3, 1), torch.zeros(3, 1), "accuracy")
    with pytest.raises(TrainingError, match="one column of numbers"):
        TASK.checked_names(["age", "height"])
