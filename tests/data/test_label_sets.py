"""Several labels an image: cells of a manifest, their texts, and iterative stratification."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.label_cells import read_cells
from finetune.data.splits import fold_labels, held_out_by, split_labels
from finetune.errors import ManifestError
from finetune.spec.labels import Label, cell, from_text, indexes, moved, text

SETS = st.lists(
    st.tuples(*[st.sampled_from([0, 0, 1, -1])] * 4),
    min_size=1,
    max_size=60,
)


def read(*cells: str, task: str = "auto") -> tuple[tuple[str, ...], list[Label]]:
    return read_cells([(each, f"line {i}") for i, each in enumerate(cells, 2)], task)  # type: ignore[arg-type]


def test_one_separator_makes_all_cells_sets() -> None:
    names, labels = read("red|round", "", "round", "?red|round", "blue")
    assert names == ("blue", "red", "round")
    assert labels == [(0, 1, 1), (0, 0, 0), (0, 0, 1), (0, -1, 1), (1, 0, 0)]
    assert [cell(each, names) for each in labels] == [
        "red|round",
        "",
        "round",
        "?red|round",
        "blue",
    ]


def test_without_one_cells_are_classes_unless_asked_for() -> None:
    assert read("red", "blue") == (("blue", "red"), [1, 0])
    assert read("red", "", task="multilabel") == (("red",), [(1,), (0,)])
    assert read("a|b", "c", task="multiclass") == (("a|b", "c"), [0, 1])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("red", ""), "with --data.task multilabel it means"),
        (("red|", "a"), "where one is missing"),
        (("red||blue",), "where one is missing"),
        (("red|?red",), "'red' as had and as not known"),
        (("?red|?blue", "red|blue"), "found only labels with '.' in line 2"),
    ],
)
def test_a_wrong_cell_is_one_clear_line(cells: tuple[str, ...], message: str) -> None:
    with pytest.raises(ManifestError, match=message) as raised:
        read(*cells)
    assert "\n" not in str(raised.value)


@given(SETS)
@settings(max_examples=30, deadline=None)
def test_texts_give_labels_back(labels: list[tuple[int, ...]]) -> None:
    for label in labels:
        assert from_text(text(label)) == label
        there = moved(label, [5, 0, 3, 1], 6)
        assert {(5, 0, 3, 1)[i] for i in indexes(label)} == {*indexes(there)}
    assert from_text("12") == 12


@pytest.mark.parametrize("written", ["", "+x", "1+", "-1"])
def test_another_text_is_no_label(written: str) -> None:
    with pytest.raises(ValueError, match="no label"):
        from_text(written)


@given(
    SETS, st.sampled_from([(0.2, 0.2), (0.0, 0.3), (0.5, 0.4)]), st.integers(0, 5), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_splits_keep_groups_and_give_train_each_label(
    labels: list[tuple[int, ...]], shares: tuple[float, float], seed: int, grouped: bool
) -> None:
    keys = [f"{index}.png" for index in range(len(labels))]
    groups = [index // 3 for index in range(len(labels))] if grouped else None
    val, test = shares
    options = {"val_fraction": val, "test_fraction": test, "groups": groups, "seed": seed}
    sides = split_labels(labels, keys, **options)  # type: ignore[arg-type]
    having = {index for label in labels for index in indexes(label)}
    learnt = {
        i
        for label, side in zip(labels, sides, strict=True)
        if side == "train"
        for i in indexes(label)
    }
    assert learnt == having
    assert "val" not in sides or val > 0
    if groups is not None:
        assert len({*zip(groups, sides, strict=True)}) == len({*groups})
    turned = split_labels(
        labels[::-1], keys[::-1], **{**options, "groups": groups and groups[::-1]}
    )  # type: ignore[arg-type]
    if groups is None:
        assert turned[::-1] == sides  # the order of the files decides nothing
    again = split_labels(labels, keys, previous=sides, **options)  # type: ignore[arg-type]
    assert again == sides


def test_each_side_has_its_share_of_each_label() -> None:
    labels = [(i % 2, int(i % 3 == 0), int(i % 10 == 0), int(i % 97 == 0)) for i in range(1000)]
    keys = [str(i) for i in range(len(labels))]
    sides = split_labels(labels, keys, val_fraction=0.2, test_fraction=0.1)
    shares = {"train": 0.7, "val": 0.2, "test": 0.1}
    for label in range(4):
        counts = Counter(side for has, side in zip(labels, sides, strict=True) if has[label])
        for side, share in shares.items():
            assert abs(counts[side] - share * sum(counts.values())) <= 2, (label, side)
    counts = Counter(sides)
    assert all(abs(counts[side] - 1000 * share) <= 5 for side, share in shares.items())  # type: ignore[index]
    assert sides != split_labels(labels, keys, val_fraction=0.2, test_fraction=0.1, seed=1)


def test_new_images_leave_the_old_ones_where_they_were() -> None:
    labels = [(i % 2, int(i % 3 == 0)) for i in range(90)]
    keys = [str(i) for i in range(90)]
    old = split_labels(labels[:60], keys[:60], val_fraction=0.3)
    new = split_labels(labels, keys, val_fraction=0.3, previous=[*old, *[None] * 30])
    assert new[:60] == old
    assert 22 <= Counter(new)["val"] <= 32


def test_folds_hold_each_label_out_in_turn() -> None:
    labels = [(1, int(i % 4 == 0), int(i == 7)) for i in range(40)]
    folds = fold_labels(labels, [str(i) for i in range(40)], folds=4)
    for label, least in ((0, 9), (1, 2)):
        counts = Counter(fold for has, fold in zip(labels, folds, strict=True) if has[label])
        assert min(counts[fold] for fold in range(4)) >= least
    out = held_out_by(folds[7], folds, labels)
    assert not out[7]  # the only image with its label stays in training
    assert 7 <= sum(out) <= 11


def test_of_sides_that_lack_a_label_alike_the_emptier_one_gets_it() -> None:
    labels = [(0, 0)] * 10 + [(0, 1)]
    keys = [str(i) for i in range(11)]
    for full in (0, 1):
        folds = fold_labels(labels, keys, folds=2, previous=[full] * 10 + [None])
        assert folds[10] == 1 - full


def test_a_manifest_is_read_and_written(tmp_path: Path) -> None:
    from finetune.data.manifest import read_manifest, write_manifest

    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(b"")
    rows = "path,label\n0.png,a|b\n1.png,\n2.png,?a|b\n3.png,a\n"
    (tmp_path / "labels.csv").write_text(rows)
    folder = read_manifest(tmp_path / "labels.csv", tmp_path)
    assert folder.has_label_sets
    assert folder.class_names == ("a", "b")
    write_manifest(tmp_path / "split.csv", folder)
    again = read_manifest(tmp_path / "split.csv", tmp_path)
    assert {i.path: i.label for i in again.images} == {i.path: i.label for i in folder.images}
