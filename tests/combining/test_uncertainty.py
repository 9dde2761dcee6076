import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.combining.uncertainty import uncertainty


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 7)),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=50, deadline=None)
def test_entropies_add_up_and_shares_stay_in_range(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    members = (4 * torch.randn(shape, generator=generator).double()).softmax(-1)
    found = uncertainty(members)
    reference = torch.distributions.Categorical(probs=members.double())
    torch.testing.assert_close(found.expected_entropy, reference.entropy().mean(0))
    assert bool((found.mutual_information >= 0).all())
    torch.testing.assert_close(
        found.entropy, found.expected_entropy + found.mutual_information, atol=1e-6, rtol=0
    )
    assert bool((found.entropy <= math.log(shape[2]) + 1e-9).all())
    assert bool(((found.disagreement >= 0) & (found.disagreement <= 1)).all())
    assert bool(((found.variation_ratio >= 0) & (found.variation_ratio < 1)).all())


def test_one_member_is_never_at_odds_with_itself() -> None:
    found = uncertainty(torch.rand(1, 5, 3).softmax(-1))
    assert found.disagreement.tolist() == [0.0] * 5
    assert found.variation_ratio.tolist() == [0.0] * 5
    assert found.mutual_information.abs().max() < 1e-12


def test_hand_example() -> None:
    sure = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    found = uncertainty(torch.tensor(sure).unsqueeze(1))
    # Six pairs, one of which agrees; the most named class has two of four votes.
    torch.testing.assert_close(found.disagreement, torch.tensor([5 / 6]).double())
    torch.testing.assert_close(found.variation_ratio, torch.tensor([0.5]).double())
    assert found.expected_entropy.item() == 0.0
    assert math.isclose(found.entropy.item(), 1.5 * math.log(2))
