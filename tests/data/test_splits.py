from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.splits import fold_labels, held_out_by, split_labels
from finetune.errors import UsageError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120)
SHARES = st.sampled_from(
    [(0.2, 0.2), (0.2, 0.0), (0.0, 0.3), (0.1, 0.15), (0.01, 0.01), (0.5, 0.3)]
)
SEEDS = st.integers(0, 5)


def names(count: int) -> list[str]:
    return [f"class/{number}.jpg" for number in range(count)]


@given(LABELS, SHARES, SEEDS)
def test_strata_are_within_one_image_of_ideal_and_train_has_every_class(
    labels: list[int], shares: tuple[float, float], seed: int
) -> None:
    val, test = shares
    sides = split_labels(
        labels, names(len(labels)), val_fraction=val, test_fraction=test, seed=seed
    )
    assert len(sides) == len(labels)
    ideal = {"train": 1 - val - test, "val": val, "test": test}
    for label, size in Counter(labels).items():
        counts = Counter(s for s, own in zip(sides, labels, strict=True) if own == label)
        assert counts["train"] >= 1
        for side, share in ideal.items():
            assert abs(counts[side] - share * size) < 1 + 1e-9


@given(LABELS, SHARES, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(
    labels: list[int], shares: tuple[float, float], seed: int, random: object
) -> None:
    keys = names(len(labels))
    options = {"val_fraction": shares[0], "test_fraction": shares[1], "seed": seed}
    expected = dict(zip(keys, split_labels(labels, keys, **options), strict=True))
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = split_labels([labels[i] for i in order], [keys[i] for i in order], **options)
    assert {keys[i]: side for i, side in zip(order, again, strict=True)} == expected


@given(LABELS, LABELS, SHARES, SEEDS)
def test_added_files_never_move_old_ones_and_fill_up_what_is_short(
    old: list[int], new: list[int], shares: tuple[float, float], seed: int
) -> None:
    options = {"val_fraction": shares[0], "test_fraction": shares[1], "seed": seed}
    before = split_labels(old, names(len(old)), **options)
    labels = old + new
    after = split_labels(
        labels, names(len(labels)), previous=[*before, *[None] * len(new)], **options
    )
    assert after[: len(old)] == before
    for label, size in Counter(labels).items():
        counts = Counter(s for s, own in zip(after, labels, strict=True) if own == label)
        assert counts["train"] >= 1
        assert abs(counts["val"] - shares[0] * size) <= 1 + 1e-9
        assert abs(counts["test"] - shares[1] * size) <= 1 + 1e-9


GROUPED = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 12))), min_size=1, max_size=80
)


@given(GROUPED, SHARES, SEEDS)
def test_groups_never_cross(
    images: list[tuple[int, int | None]], shares: tuple[float, float], seed: int
) -> None:
    labels, groups = [p[0] for p in images], [p[1] for p in images]
    sides = split_labels(
        labels,
        names(len(labels)),
        val_fraction=shares[0],
        test_fraction=shares[1],
        groups=groups,
        seed=seed,
    )
    sides_of = defaultdict(set)
    for group, side in zip(groups, sides, strict=True):
        sides_of[group].add(side)
    assert all(len(found) == 1 for group, found in sides_of.items() if group is not None)
    assert {"train", *(s for s, share in zip(("val", "test"), shares, strict=True) if share)} >= {
        *sides
    }
    for label in set(labels):
        assert "train" in {s for s, own in zip(sides, labels, strict=True) if own == label}


@given(GROUPED, st.integers(2, 4), SEEDS)
def test_groups_are_held_out_whole(
    images: list[tuple[int, int | None]], folds: int, seed: int
) -> None:
    labels, groups = [p[0] for p in images], [p[1] for p in images]
    fold_of = fold_labels(labels, names(len(labels)), folds=folds, groups=groups, seed=seed)
    pairs = {(g, fold) for g, fold in zip(groups, fold_of, strict=True) if g is not None}
    assert len(pairs) == len({*groups} - {None})


def test_nothing_is_held_out_unless_asked_for_and_the_first_seed_is_nought() -> None:
    keys = names(30)
    assert split_labels([0] * 30, keys) == ["train"] * 30
    asked = split_labels([0] * 30, keys, val_fraction=0.4)
    assert asked == split_labels([0] * 30, keys, val_fraction=0.4, test_fraction=0.0, seed=0)
    assert fold_labels([0] * 30, keys, folds=3) == fold_labels([0] * 30, keys, folds=3, seed=0)


def test_new_images_join_the_side_of_their_group() -> None:
    sides = split_labels(
        [0] * 12,
        names(12),
        val_fraction=0.25,
        groups=["a"] * 3 + [None] * 6 + ["a"] * 3,
        previous=["val"] * 3 + [None] * 9,
    )
    assert sides[9:] == ["val"] * 3


def test_train_has_an_image_of_a_class_of_which_val_took_too_many() -> None:
    previous = [*["val"] * 4, None]
    sides = split_labels(
        [0] * 5,
        names(5),
        val_fraction=0.4,
        test_fraction=0.4,
        previous=previous,  # type: ignore[arg-type]
    )
    assert sides == ["val"] * 4 + ["train"]


def test_large_groups_still_give_about_the_share() -> None:
    groups = [number // 7 for number in range(700)]
    labels = [group % 5 for group in groups]
    sides = split_labels(labels, names(700), val_fraction=0.2, test_fraction=0.2, groups=groups)
    for label in range(5):
        counts = Counter(s for s, own in zip(sides, labels, strict=True) if own == label)
        assert counts == {"train": 84, "val": 28, "test": 28}


@given(LABELS, st.integers(2, 6), SEEDS)
def test_folds_partition_within_one_image_of_ideal(
    labels: list[int], folds: int, seed: int
) -> None:
    fold_of = fold_labels(labels, names(len(labels)), folds=folds, seed=seed)
    assert set(fold_of) <= set(range(folds))
    for label, size in Counter(labels).items():
        counts = Counter(f for f, own in zip(fold_of, labels, strict=True) if own == label)
        assert all(abs(counts[fold] - size / folds) < 1 for fold in range(folds))
    totals = Counter(fold_of)
    assert max(totals.values()) - min(totals[fold] for fold in range(folds)) <= len(set(labels))


def test_a_class_that_a_fold_would_take_as_a_whole_stays_in_training() -> None:
    labels = [0, 0, 0, 0, 1]
    fold_of = [0, 1, 0, 1, 1]
    assert held_out_by(1, fold_of, labels) == [False, True, False, True, False]
    with pytest.raises(ValueError, match="shorter"):
        held_out_by(1, fold_of[:4], labels)


def test_other_seeds_hold_out_other_images() -> None:
    labels = [0] * 50
    splits = {
        tuple(split_labels(labels, names(50), val_fraction=0.2, seed=seed)) for seed in range(5)
    }
    assert len(splits) == 5


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (1.0, 0.0), (0.5, 0.5), (0.0, 1.5)])
def test_impossible_shares_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="fraction"):
        split_labels([0], ["a"], val_fraction=shares[0], test_fraction=shares[1])


def test_a_group_goes_where_its_classes_lack_the_larger_shares_of_theirs() -> None:
    """Of the rare class val has its half, train a tenth; of the common one train has 53 of 50."""
    rare = ["train", *["val"] * 5, *[None] * 4]
    common = [*["train"] * 53, *["val"] * 40, *[None] * 7]
    groups = [None] * 9 + ["both"] + [None] * 99 + ["both"]
    sides = split_labels(
        [0] * 10 + [1] * 100,
        names(110),
        val_fraction=0.5,
        groups=groups,
        previous=[*rare, *common],  # type: ignore[list-item]
    )
    assert sides[9] == sides[109] == "train"
