from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import CheckpointError
from finetune.spec.images import ImageRef, content_id
from finetune.spec.splits import SIDES, SplitRecord, Standing, united

PATHS = st.lists(
    st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=1, unique=True
)


def record_of(sides: dict[str, str], **settings: object) -> SplitRecord:
    """One image a letter, of that content and at that path."""
    images = [ImageRef(content_id(name.encode()), name, 0) for name in sides]
    at = [Standing(side) for side in sides.values()]  # type: ignore[arg-type]
    return SplitRecord(settings, ("x", "y"), tuple(images), tuple(at))


@given(PATHS, st.randoms(use_true_random=False))
def test_what_a_checkpoint_keeps_is_read_back(paths: list[str], random: object) -> None:
    choose = random.choice  # type: ignore[attr-defined]
    images = [ImageRef(content_id(path.encode(errors="surrogatepass")), path, choose((0, 11)))
              for path in paths]  # fmt: skip
    at = [Standing(choose(SIDES), choose((None, 0, 12))) for _ in paths]
    at = [replace(each, refitted=each.side == "train" and choose((True, False))) for each in at]
    record = SplitRecord({"seed": 3}, ("a", "b"), tuple(images), tuple(at), listed=True)
    assert SplitRecord.from_entry({"data": {"seed": 3}, "split": record.plain}) == record


def test_a_changed_split_is_noticed() -> None:
    kept = record_of({"a": "train", "b": "test"}).plain
    for change in (
        {"sides": "20"},
        {"sides": "0"},
        {"ids": "x"},
        {"labels": "a b"},
        {"paths": "a"},
        {"folds": "1"},
        {"sides": "09"},
        {"digest": None},
        {"paths": 3},
    ):
        with pytest.raises(CheckpointError, match="split of a fit"):
            SplitRecord.from_entry({"split": {**kept, **change}})


def test_an_image_is_known_by_its_content_before_its_path() -> None:
    record = record_of({"a": "train", "b": "val", "c": "test"})
    ids = {ref.path: ref.id for ref in record.images}
    for first, second, side in (
        ("a", "c", "train"), ("c", "a", "test"), ("b", "c", "val"), ("c", "b", "test"),
        ("c", "c", "test"), ("c", "elsewhere", "test"),
    ):  # fmt: skip
        assert record.standing(ids[first], second) == Standing(side)  # type: ignore[arg-type]
    assert record.standing("new", "b") == Standing("val")
    assert record.standing("new", "elsewhere") is None


def test_what_one_fit_trained_on_is_held_out_of_none() -> None:
    first = record_of({"a": "train", "b": "val", "c": "test", "d": "test"}, folds=3, fold=0, seed=1)
    second = record_of({"b": "test", "c": "train", "d": "test", "e": "val"}, folds=3, fold=1)
    both = united([first, second])
    sides = {ref.path: at.side for ref, at in zip(both.images, both.standings, strict=True)}
    assert sides == {"a": "train", "b": "val", "c": "train", "d": "test", "e": "val"}
    assert both.settings == {"seed": 1}
    assert united([first, replace(first, settings={})]) is first


def test_val_that_only_a_final_layer_has_seen_is_val_again_without_it() -> None:
    dealt = record_of({"a": "train", "b": "val", "c": "test"})
    refitted = dealt.with_val_trained()
    assert [at.side for at in refitted.standings] == ["train", "train", "test"]
    assert refitted.with_val_again() == dealt
    all_of_it = record_of({"a": "val", "b": "train", "c": "test"})
    joined = united([refitted, all_of_it]).with_val_again()
    assert [at.side for at in joined.standings] == ["train", "train", "test"]


def test_labels_of_several_fits_are_told_by_name() -> None:
    first = record_of({"a": "train"})
    second = replace(record_of({"b": "train"}), class_names=("y", "x"))
    assert [ref.label for ref in united([first, second]).images] == [0, 1]
