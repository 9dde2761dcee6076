import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.combining.pooling import Pooling, pool
from finetune.combining.selection import (
    choose_coefficients,
    cross_validated_answers,
    select_members,
)
from finetune.errors import UsageError
from finetune.spec.choices import Metric
from finetune.tasks.held_out_loss import Measure, held_out_loss
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.regression import REGRESSION

METRICS: list[Metric] = ["nll", "accuracy", "brier"]
MEASURED: list[tuple[Pooling, Measure]] = [
    ("mean", "mae"),
    *(("mean", metric) for metric in METRICS),
    *(("geometric", metric) for metric in METRICS),
    ("vote", "accuracy"),
]


def library(
    members: int, seed: int, *, images: int = 120, classes: int = 4
) -> tuple[Tensor, Tensor]:
    """Members of different strength that err independently, and the true labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, classes).float()
    strength = torch.rand(members, 1, 1, generator=generator) * 2
    noise = torch.randn(members, images, classes, generator=generator)
    return strength * truth + 1.5 * noise, labels


@pytest.mark.parametrize(("pooling", "metric"), MEASURED)
@pytest.mark.parametrize("bags", [0, 6])
@given(
    members=st.integers(1, 10),
    images=st.integers(1, 30),
    twins=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=15, deadline=None)
def test_never_worse_than_the_best_member_on_the_images_that_select(
    pooling: Pooling,
    metric: Measure,
    bags: int,
    members: int,
    images: int,
    twins: bool,
    seed: int,
) -> None:
    logits, labels = library(members, seed, images=images)
    task = MULTICLASS
    if metric == "mae":
        task, logits, labels = REGRESSION, logits[..., :1], labels.double()
    if twins:
        logits = logits.repeat(2, 1, 1)
    chosen = select_members(logits, labels, metric=metric, pooling=pooling, bags=bags, rounds=15)
    single = [held_out_loss(member, labels, metric) for member in logits]
    assert chosen.best_loss == pytest.approx(min(single))
    assert chosen.loss <= min(single) + 1e-12
    assert sum(chosen.coefficients) == pytest.approx(1)
    assert min(chosen.coefficients) >= 0
    pooled = pool(task, logits.double(), chosen.coefficients, method=pooling)
    assert chosen.loss == pytest.approx(held_out_loss(pooled, labels, metric))


def test_numbers_that_err_to_either_side_are_taken_together() -> None:
    truth = torch.linspace(0, 100, 40)
    off = torch.tensor([9.0, -9.0, 40.0])
    members = truth[None, :, None] + off[:, None, None]
    chosen = select_members(*REGRESSION.rows(members, truth[:, None]), metric="mae")
    assert chosen.coefficients == pytest.approx((0.5, 0.5, 0), abs=1e-6)
    assert chosen.loss == pytest.approx(0, abs=1e-5)


def test_ties_in_accuracy_keep_several_members() -> None:
    """All are right on the few images that choose; which is surest there says little."""
    labels = torch.zeros(8).long()
    generator = torch.Generator().manual_seed(0)
    right = 0.75 + 0.2 * torch.rand(4, 8, generator=generator)
    members = torch.stack([right, 1 - right], dim=-1).log()
    chosen = select_members(members, labels, metric="accuracy")
    assert chosen.loss == chosen.best_loss == 0
    assert len(chosen.members) > 1


def test_as_much_of_the_bags_answer_stays_as_the_best_member_allows() -> None:
    """The bags find both members good; on the images as they are one of them is best by a hair."""
    labels = torch.zeros(12).long()
    first = torch.tensor([0.9] * 6 + [0.6] * 6)
    second = torch.tensor([0.6] * 6 + [0.9] * 6)
    useless = torch.full((12,), 0.5)
    right = torch.stack([first, second, useless])
    members = torch.stack([right, 1 - right], dim=-1).log()
    chosen = select_members(members, labels)
    assert chosen.members == (0, 1)
    for seed in range(20):
        logits, labels = library(5, seed, images=12)
        bagged = select_members(logits, labels, seed=seed)
        plain = select_members(logits, labels, bags=0)
        assert plain.loss <= bagged.best_loss
        assert len(bagged.members) >= len(plain.members)


@pytest.mark.parametrize("seed", range(6))
def test_close_to_an_exhaustive_search(seed: int) -> None:
    logits, labels = library(3, seed)
    grid = [c for c in itertools.product(range(13), repeat=3) if sum(c) == 12]
    exhaustive = min(held_out_loss(pool(MULTICLASS, logits, c), labels, "nll") for c in grid)
    greedy = select_members(logits, labels, bags=0).loss
    assert greedy <= exhaustive + 2e-3


@pytest.mark.parametrize("metric", METRICS)
def test_first_step_is_the_exhaustively_best_pair_or_single(metric: Metric) -> None:
    logits, labels = library(5, 3)
    chosen = select_members(logits, labels, metric=metric, bags=0, max_members=2, rounds=1)
    best = chosen.best_member
    allowed = [[best]] + [[best, other] for other in range(5)]
    losses = [held_out_loss(pool(MULTICLASS, logits[pair]), labels, metric) for pair in allowed]
    assert chosen.loss <= min(losses) + 1e-12


def test_the_right_answer_of_a_made_example_is_found() -> None:
    """Two members are right on halves of the images; the third is sure and always wrong."""
    labels = torch.zeros(20).long()
    good = torch.tensor([0.9, 0.1]).repeat(20, 1)
    first, second = good.clone(), good.clone()
    first[:10] = torch.tensor([0.45, 0.55])
    second[10:] = torch.tensor([0.45, 0.55])
    bad = torch.tensor([0.01, 0.99]).repeat(20, 1)
    chosen = select_members(torch.stack([bad, first, second]).log(), labels, bags=0)
    assert chosen.coefficients == pytest.approx((0.0, 0.5, 0.5))
    assert chosen.members == (1, 2)


def test_without_bags_coefficients_are_multiples_of_one_over_the_additions() -> None:
    logits, labels = library(5, 1)
    coefficients = torch.tensor(select_members(logits, labels, bags=0).coefficients)
    fits = [
        bool(((coefficients * n).round() - coefficients * n).abs().max() < 1e-6)
        for n in range(1, 60)
    ]
    assert any(fits)


def test_one_member_and_copies_of_one_member() -> None:
    logits, labels = library(1, 0)
    assert select_members(logits, labels).coefficients == (1.0,)
    copies = logits.repeat(3, 1, 1)
    chosen = select_members(copies, labels)
    pooled = pool(MULTICLASS, copies, chosen.coefficients).double().softmax(-1)
    torch.testing.assert_close(pooled, logits[0].double().softmax(-1))


def test_same_seed_same_answer() -> None:
    logits, labels = library(6, 2)
    assert select_members(logits, labels, seed=1) == select_members(logits, labels, seed=1)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_members_than_asked_for(most: int) -> None:
    logits, labels = library(6, 5)
    chosen = select_members(logits, labels, max_members=most)
    assert 1 <= len(chosen.members) <= most
    assert chosen.loss <= chosen.best_loss


def test_a_member_that_costs_more_than_it_adds_is_left_out() -> None:
    logits, labels = library(2, 11)
    both = select_members(logits, labels, bags=0)
    assert len(both.members) == 2
    gain = both.best_loss - both.loss
    slow = 1 - both.best_member
    costs = [1.0, 1.0]
    kept = select_members(logits, labels, bags=0, costs=costs, min_gain=gain * 0.9)
    assert len(kept.members) == 2
    costs[slow] = 3.0  # relative cost 1.5
    dropped = select_members(logits, labels, bags=0, costs=costs, min_gain=gain * 0.9)
    assert dropped.members == (both.best_member,)


def test_what_is_pooled_by_logits_is_chosen_by_logits() -> None:
    """One member is sure of a wrong class: half of a mean of probabilities, a veto for logits."""
    labels = torch.zeros(10).long()
    modest = torch.tensor([0.55, 0.45]).repeat(10, 1)
    sure = torch.tensor([0.999, 0.001]).repeat(10, 1)
    sure[0] = torch.tensor([1e-9, 1 - 1e-9])
    members = torch.stack([modest, sure]).log()
    losses: dict[Pooling, float] = {}
    ways: list[Pooling] = ["mean", "geometric"]
    for used in ways:
        chosen = select_members(members, labels, pooling=used, bags=0)
        pooled = pool(MULTICLASS, members.double(), chosen.coefficients, method="geometric")
        losses[used] = held_out_loss(pooled, labels, "nll")
    grid = [
        held_out_loss(
            pool(MULTICLASS, members.double(), [1 - c / 50, c / 50], method="geometric"),
            labels,
            "nll",
        )
        for c in range(51)
    ]
    assert losses["geometric"] < losses["mean"] - 0.1
    assert losses["geometric"] <= min(grid) + 2e-3


def test_votes_are_selected_by_accuracy_only() -> None:
    logits, labels = library(3, 0)
    with pytest.raises(UsageError, match="no probabilities"):
        select_members(logits, labels, pooling="vote")
    with pytest.raises(UsageError, match="pooling mean with method learned"):
        choose_coefficients(logits, labels, method="learned", pooling="geometric")


@pytest.mark.parametrize("pooling", ["mean", "geometric"])
def test_cross_validated_answers_of_the_ensemble_are_honest(pooling: Pooling) -> None:
    def select(members: Tensor, truth: Tensor) -> Sequence[float]:
        return select_members(members, truth, pooling=pooling).coefficients

    def best(members: Tensor, truth: Tensor) -> Sequence[float]:
        return select_members(members, truth, max_members=1, bags=0).coefficients

    optimistic, combined, single = 0.0, 0.0, 0.0
    for seed in range(4):  # of one library alone the folds may be easier than the whole by chance
        members, labels = library(8, seed, images=80)
        optimistic += select_members(members, labels, pooling=pooling).loss
        answers = cross_validated_answers(MULTICLASS, members, labels, select, pooling=pooling)
        combined += held_out_loss(answers, labels, "nll")
        answers = cross_validated_answers(MULTICLASS, members, labels, best, pooling=pooling)
        single += held_out_loss(answers, labels, "nll")
    assert optimistic < combined < single


def test_wrong_numbers_of_labels_and_costs_are_refused() -> None:
    logits, labels = library(2, 0)
    with pytest.raises(UsageError, match="label for each"):
        select_members(logits, labels[:-1])
    with pytest.raises(UsageError, match="cost above 0"):
        select_members(logits, labels, costs=[1.0])
