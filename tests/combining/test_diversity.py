import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from finetune.combining.diversity import cohen_kappa, diversity, error_correlation, q_statistic
from finetune.combining.pooling import pool
from finetune.tasks.multiclass import MULTICLASS


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(2, 30), st.integers(2, 5)),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_measures_stay_in_range_and_matrices_are_symmetric(
    shape: tuple[int, int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    members = 2 * torch.randn(shape, generator=generator)
    labels = torch.randint(shape[2], (shape[1],), generator=generator)
    found = diversity(members, labels)
    for name, low, high, own in [
        ("disagreement", 0, 1, 0.0),
        ("error_correlation", -1, 1, 1.0),
        ("kappa", -1, 1, 1.0),
        ("q_statistic", -1, 1, None),
        ("divergence", 0, np.inf, 0.0),
    ]:
        matrix = getattr(found, name)
        torch.testing.assert_close(matrix, matrix.T)
        assert bool(((matrix >= low - 1e-9) & (matrix <= high + 1e-9)).all()), name
        if own is not None:
            torch.testing.assert_close(matrix.diagonal(), torch.full((shape[0],), own).double())
    correct = pool(MULTICLASS, members).argmax(-1) == labels
    member_accuracy = (members.argmax(-1) == labels).double().mean(-1).max()
    assert found.oracle_accuracy >= member_accuracy - 1e-9
    assert 0 <= correct.double().mean() <= 1
    assert found.ambiguity >= 0


@pytest.mark.parametrize("seed", range(4))
def test_kappa_and_correlation_equal_their_references(seed: int) -> None:
    generator = np.random.default_rng(seed)
    predicted = generator.integers(0, 4, size=(3, 50))
    labels = generator.integers(0, 4, size=50)
    kappa = cohen_kappa(torch.from_numpy(predicted), 4)
    correlation = error_correlation(torch.from_numpy(predicted == labels))
    for i in range(3):
        for j in range(3):
            expected = cohen_kappa_score(predicted[i], predicted[j])
            assert kappa[i, j].item() == pytest.approx(expected)
    np.testing.assert_allclose(correlation.numpy(), np.corrcoef(predicted != labels), atol=1e-12)


def test_q_statistic_by_hand() -> None:
    first = [True] * 6 + [False] * 4
    second = [True] * 5 + [False] + [True] * 2 + [False] * 2
    matrix = q_statistic(torch.tensor([first, second, [True] * 10]))
    # N11 = 5, N00 = 2, N10 = 1, N01 = 2: (10 - 2) / (10 + 2).
    assert matrix[0, 1].item() == pytest.approx(8 / 12)
    assert matrix[0, 2].item() == 0.0


def test_members_that_never_err_are_no_division_by_zero() -> None:
    members = torch.tensor([[[2000.0, -2000.0], [-2000.0, 2000.0]]] * 2)
    found = diversity(members, torch.tensor([0, 1]))
    assert found.error_correlation.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert (found.oracle_accuracy, found.ambiguity) == (1.0, 0.0)


def test_divergence_equals_torchs() -> None:
    members = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).double()
    first, second = (torch.distributions.Categorical(logits=member) for member in members)
    kl = torch.distributions.kl_divergence
    expected = ((kl(first, second) + kl(second, first)) / 2).mean()
    found = diversity(members, torch.zeros(9).long()).divergence[0, 1]
    torch.testing.assert_close(found, expected)
