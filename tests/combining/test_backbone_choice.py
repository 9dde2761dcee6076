"""Backbones are judged on growing samples, and the cheapest of the equals is named."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from torch import Tensor

from finetune.combining.backbone_choice import (
    FINALISTS,
    BackboneChoice,
    Trial,
    choose_backbone,
    choose_set,
    nested_sample,
    rounds,
)

IMAGES, CLASSES = 600, 4


def trial(name: str, logits: Tensor, labels: Tensor, ms: float = 1.0) -> Trial:
    return Trial(name, True, ms, 10 * ms, "mit", logits, labels)


def answers(skill: float, *, seed: int, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """Logits in which the label stands out by ``skill`` against noise of 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    noise = torch.randn(images, CLASSES, generator=generator, dtype=torch.float64)
    return noise + skill * torch.nn.functional.one_hot(labels, CLASSES), labels


class Field:
    """Backbones of known skill and cost, and how many images each was judged on."""

    def __init__(self, **known: tuple[float, float]) -> None:
        self.known = known
        self.judged: Counter[str] = Counter()

    def judge(self, names: Sequence[str], images: int) -> list[Trial]:
        return [self.judge_one(name, images) for name in names]

    def judge_one(self, name: str, images: int) -> Trial:
        self.judged[name] = images
        skill, ms = self.known[name]
        logits, labels = answers(skill, seed=list(self.known).index(name))
        return trial(name, logits[:images], labels[:images], ms)

    def choose(self, **options: object) -> BackboneChoice:
        sizes = rounds(len(self.known), IMAGES, CLASSES)
        found = choose_backbone(list(self.known), sizes, self.judge, **options)  # type: ignore[arg-type]
        assert found is not None
        return found


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    seed=st.integers(0, 3),
    percent=st.integers(5, 100),
)
@settings(max_examples=40)
def test_every_beginning_of_the_sample_has_of_each_class_its_share(
    counts: list[int], seed: int, percent: int
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    keys = [f"{index:03}" for index in range(len(labels))]
    order = nested_sample(labels, keys, seed=seed)
    assert sorted(order) == list(range(len(labels)))
    part = round(percent * len(labels) / 100)
    found = Counter(labels[index] for index in order[:part])
    for label, count in enumerate(counts):
        assert abs(found[label] - count * part / len(labels)) <= 1 + len(counts) / 2
    # The order is the images', not the disk's.
    turned = nested_sample(labels[::-1], keys[::-1], seed=seed)
    assert [keys[::-1][index] for index in turned] == [keys[index] for index in order]


@given(st.integers(1, 20), st.integers(2, 50_000), st.integers(2, 1000))
def test_rounds_rise_and_never_ask_for_more_than_there_is(
    backbones: int, images: int, classes: int
) -> None:
    sizes = rounds(backbones, images, classes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] <= images
    assert sizes[-1] >= min(images, 150, 10 * classes)
    assert len(sizes) == 1 or backbones > FINALISTS


@pytest.mark.parametrize("backbones", [4, 6, 8])
def test_a_third_of_the_images_finds_the_best(backbones: int) -> None:
    field = Field(**{f"b{index}": (float(index), 1.0 + index) for index in range(backbones)})
    found = field.choose()
    assert found.best.name == found.named.name == f"b{backbones - 1}"
    assert sum(field.judged.values()) <= backbones * IMAGES / 3
    assert len(found.trials) == FINALISTS
    assert {each.name for each in (*found.trials, *found.earlier)} == set(field.known)
    assert max(each.images for each in found.earlier) < found.best.images
    assert "best of 3" in found.reason


def test_the_cheapest_of_the_equals_is_named_and_goes_on() -> None:
    """Also where so many are as good that by NLL alone chance would leave it behind."""
    known = {f"b{index}": (2.0, 30.0 - index) for index in range(8)}
    found = Field(**known, poor=(0.0, 1.0)).choose()
    assert found.named in found.equals
    assert found.named.milliseconds == min(each.milliseconds for each in found.equals)
    assert found.named.milliseconds <= 26  # of the cheaper half, out of 23 to 30
    assert "poor" not in {each.name for each in found.equals}


def test_lagging_behind_is_measured_image_by_image() -> None:
    logits, labels = answers(1.0, seed=0)
    one = trial("a", logits, labels)
    other = trial("b", logits + 0.2 * torch.randn(logits.shape).double(), labels)
    lag, error = other.lags(one)
    reference = ttest_rel(other.losses.numpy(), one.losses.numpy())
    assert lag / error == pytest.approx(reference.statistic)
    assert error < one.standard_error / 2  # that of the pair, not of two means
    assert one.standard_error == pytest.approx(float(one.losses.std()) / sqrt(IMAGES))


def test_where_time_is_short_the_last_whole_round_decides() -> None:
    field = Field(**{f"b{index}": (float(index), 1.0) for index in range(6)})
    found = field.choose(affordable=lambda trials, images: False)
    assert len(found.trials) == 6
    assert len({each.images for each in found.trials}) == 1
    assert not found.earlier
    assert found.best.name == "b5"


def test_images_that_one_has_no_answer_to_count_for_none() -> None:
    logits, labels = answers(1.0, seed=0, images=300)
    holes = logits.clone()
    holes[::7] = torch.nan
    given = {"a": logits, "b": holes}
    found = choose_backbone(
        ["a", "b"], [300], lambda names, size: [trial(name, given[name], labels) for name in names]
    )
    assert found is not None
    assert {each.images for each in found.trials} == {300 - len(holes[::7])}
    assert found.trials[0].nll == pytest.approx(found.trials[1].nll)
    assert choose_backbone(["a"], [9], lambda names, size: [None]) is None


def test_a_set_pays_where_its_members_know_different_things() -> None:
    logits, labels = answers(0.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    halves = torch.rand(IMAGES, generator=generator) < 0.5
    clear = 4 * torch.nn.functional.one_hot(labels, CLASSES)
    left = trial("left", logits + clear * halves[:, None], labels)
    right = trial("right", logits + clear * ~halves[:, None], labels)
    together = choose_set([left, right])
    assert together.pays
    assert sorted(together.coefficients) == ["left", "right"]
    assert sum(together.coefficients.values()) == pytest.approx(1)
    assert together.nll == pytest.approx(min(left.nll, right.nll) - together.gain)
    assert not choose_set([left, trial("again", left.logits, labels)]).pays
