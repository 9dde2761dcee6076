import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import describe
from finetune.training.model_selection import Candidate, clearly_better, exceeds_its_error

LABELS = torch.zeros(40, dtype=torch.long)


def candidate(losses: Tensor | None) -> Candidate:
    """One whose held-out images, all of the first of two classes, have these losses."""
    val = {}
    if losses is not None:
        # log(1 - p), without a p that rounds to 0 or 1
        first = -losses.double()
        logits = torch.stack([first, torch.log(-torch.expm1(first))], dim=1)
        val = {"val": {"logits": logits, "labels": LABELS[: len(losses)], "paths": []}}
    network = NetworkSpec("test_resnet")
    entry = describe(("a", "b"), "test_resnet", Preprocessing(), network=network, fit={}, **val)
    return Candidate({"w": torch.zeros(1)}, {}, entry)


def normal(count: int, seed: int = 0) -> Tensor:
    spread = torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()
    return (spread - spread.mean()) / spread.std()


@pytest.mark.parametrize(("factor", "better"), [(0.8, False), (1.25, True)])
def test_a_gain_has_to_exceed_its_standard_error(factor: float, better: bool) -> None:
    before = torch.full((40,), 0.8, dtype=torch.float64)
    gains = factor * 0.1 / math.sqrt(40) + 0.1 * normal(40)
    assert clearly_better(candidate(before - gains), candidate(before), "val/nll") is better


@pytest.mark.parametrize(
    ("count", "factor", "better"),
    [(count, f, f > 1) for count in (20, 40, 1000) for f in (0.3, 3.0)]
    + [(6, -1.0, False), (6, 5.0, True)],
)
@pytest.mark.parametrize("lost", [62.0, -62.0])
def test_one_image_with_a_loss_without_bounds_decides_nothing(
    count: int, factor: float, better: bool, lost: float
) -> None:
    gains = factor * 0.1 / math.sqrt(count) + 0.1 * normal(count)
    assert exceeds_its_error(gains) is better
    gains[count // 2] = lost
    assert exceeds_its_error(gains) is better


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=30), st.data())
def test_an_outlier_counts_as_the_next_largest_gain(
    gains: list[float], data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, len(gains) - 1))
    far, farther = ([*gains[:chosen], size, *gains[chosen + 1 :]] for size in (2.0, 1e6))
    assert exceeds_its_error(torch.tensor(far)) is exceeds_its_error(torch.tensor(farther))


@pytest.mark.parametrize(
    ("gains", "better"),
    [([], False), ([1.0], True), ([1.0, -0.1], False), ([1.0, 0.0, 0.1], True), ([0.0], False)],
)
def test_of_few_images_none_may_lose(gains: list[float], better: bool) -> None:
    assert exceeds_its_error(torch.tensor(gains)) is better


def test_other_figures_are_compared_as_they_are() -> None:
    wrong, right = 1.2, 0.3
    one = candidate(torch.tensor([wrong] + [right] * 39))
    two = candidate(torch.tensor([wrong] * 2 + [right] * 38))
    assert one.figure("val/accuracy") == pytest.approx(39 / 40)
    assert clearly_better(one, two, "val/accuracy")
    assert not clearly_better(two, one, "val/accuracy")


def test_what_both_have_answered_is_compared() -> None:
    whole = torch.cat([torch.full((10,), 0.5), torch.full((30,), 9.0)])
    assert clearly_better(candidate(torch.full((10,), 0.4)), candidate(whole), "val/nll")
    assert not clearly_better(candidate(torch.full((10,), 0.6)), candidate(whole), "val/nll")
    assert not clearly_better(candidate(torch.tensor([0.6])), candidate(whole), "val/nll")


def test_without_held_out_images_the_later_phase_counts() -> None:
    before, after = candidate(None), candidate(None)
    assert clearly_better(after, before, "val/nll")
    assert after.figure("val/nll") is None
