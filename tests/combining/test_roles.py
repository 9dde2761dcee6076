import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.combining.roles import halves, of_role, picture_id, refuse_reuse, with_role
from finetune.errors import CalibrationError


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_halves_are_disjoint_complete_stratified_and_independent_of_order(
    labels: list[int], seed: int
) -> None:
    ids = [f"{index:03d}" for index in range(len(labels))]
    pick, calibrate = halves(ids, labels)
    assert sorted(pick + calibrate) == list(range(len(labels)))
    for label in set(labels):
        counts = [sum(labels[index] == label for index in half) for half in (pick, calibrate)]
        assert abs(counts[0] - counts[1]) <= 1
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    shuffled, _ = halves([ids[i] for i in order], [labels[i] for i in order])
    assert {order[index] for index in shuffled} == set(pick)


def test_equal_pictures_do_not_stand_on_both_sides() -> None:
    pick, calibrate = halves(["same", "same", "x", "y"], [0, 0, 0, 0])
    assert {0, 1} <= set(pick) or {0, 1} <= set(calibrate)


def test_shares() -> None:
    ids, labels = ["a", "b", "c", "d"], [0, 0, 1, 1]
    assert of_role(ids, labels, "pick", "all") == [0, 1, 2, 3]
    assert of_role(ids, labels, "pick", "half") == [0, 2]
    assert of_role(ids, labels, "calibrate", "half") == [1, 3]


def test_reuse_is_refused_or_branded() -> None:
    roles = with_role({}, "pick", ["a", "b"])
    assert not refuse_reuse(roles, ["c"], "calibrate")
    assert not refuse_reuse(roles, ["a"], "pick")
    with pytest.raises(CalibrationError, match="1 of 2 that helped to pick"):
        refuse_reuse(roles, ["b", "c"], "test")
    with pytest.warns(UserWarning, match="flatter"):
        assert refuse_reuse(roles, ["b"], "test", allow_reuse=True)
    assert with_role(roles, "pick", ["c"]) == {"pick": ["a", "b", "c"]}


def test_a_picture_keeps_its_id_when_it_moves_and_not_when_it_changes(tmp_path: Path) -> None:
    first, moved, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    first.write_bytes(b"x" * 50_000)
    moved.write_bytes(b"x" * 50_000)
    other.write_bytes(b"x" * 49_999 + b"y")
    assert picture_id(first) == picture_id(moved) != picture_id(other)
