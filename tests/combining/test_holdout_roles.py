import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.combining.holdout_roles import halves, in_whole_ids, of_role, refuse_reuse, with_role
from finetune.errors import CalibrationError
from finetune.spec.images import file_id


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


def test_equal_images_do_not_stand_on_both_sides() -> None:
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


def test_roles_of_an_older_file_are_translated_and_still_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(path.name.encode() * 20_000)
    # As format 1 noted it: of the size and 16 KiB from either end.
    content = paths[0].read_bytes()
    sample = str(len(content)).encode() + content[:16384] + content[-16384:]
    old = {"pick": [hashlib.blake2b(sample, digest_size=8).hexdigest()]}
    ids = [file_id(path) for path in paths]
    roles = in_whole_ids(old, [str(path) for path in paths], ids)
    assert set(roles["pick"]) == {*old["pick"], ids[0]}
    assert not refuse_reuse(roles, ids[1:], "calibrate")
    with pytest.raises(CalibrationError, match="1 of 2 that helped to pick"):
        refuse_reuse(roles, ids, "calibrate")
    assert in_whole_ids({"pick": ids}, [], []) == {"pick": ids}
