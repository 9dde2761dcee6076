"""Which image stands on which side, of folders that say nothing, some of it, or all."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.assignment import (
    SplitSettings,
    assign_splits,
    check_classes_in_train,
    classes_missing_from_train,
    image_keys,
    names_below,
    relative_names,
)
from finetune.data.folder import SPLITS, ImageFolder, LabelledImage, Split
from finetune.errors import ImageFolderError, UsageError
from finetune.spec.images import by_side

ROOT = Path("/images")
CLASSES = ("ant", "bee", "cat")


def folder_of(
    images: Iterable[LabelledImage], class_names: tuple[str, ...] = CLASSES
) -> ImageFolder:
    return ImageFolder(ROOT, class_names, tuple(sorted(images, key=by_side)))


def some(
    count: int, split: Split | None = None, label: int = 0, start: int = 0
) -> list[LabelledImage]:
    return [
        LabelledImage(ROOT / CLASSES[label] / f"{number}.png", label, None, split)
        for number in range(start, start + count)
    ]


def sides(folder: ImageFolder) -> dict[Path, Split | None]:
    return {image.path: image.split for image in folder.images}


def counted(folder: ImageFolder) -> dict[Split | None, int]:
    return dict(Counter(image.split for image in folder.images))


@pytest.mark.parametrize(
    ("given_to", "filled"),
    [
        ((), ("val", "test")),
        (("train",), ("val", "test")),
        (("train", "val"), ("test",)),
        (("train", "test"), ("val",)),
        (("train", "val", "test"), ()),
    ],
)
def test_sides_that_are_missing_are_held_out_from_the_training_images(
    given_to: tuple[Split, ...], filled: tuple[Split, ...]
) -> None:
    images = some(40, None if not given_to else "train")
    for number, split in enumerate(given_to[1:], 1):
        images += some(40, split, start=40 * number)
    before = folder_of(images)
    after = assign_splits(before, SplitSettings(val_fraction=0.1, test_fraction=0.25))
    moved = {path for path, side in sides(after).items() if side != sides(before)[path]}
    shares = {"val": 4, "test": 10}
    held_out = {split: shares[split] for split in filled}
    stays = dict.fromkeys(given_to[1:], 40)
    assert counted(after) == {"train": 40 - sum(held_out.values()), **stays, **held_out}
    assert moved <= {image.path for image in images[:40]}
    assert list(after.images) == sorted(after.images, key=by_side)


def test_a_folder_of_val_or_test_images_alone_is_left_as_it_is() -> None:
    folder = folder_of(some(8, "test"))
    assert assign_splits(folder, SplitSettings()) == folder


def test_a_manifest_that_has_said_which_are_test_images_loses_none_to_test() -> None:
    folder = folder_of(some(40, "train"))
    kept = assign_splits(folder, SplitSettings(), keep_test_absent=True)
    assert counted(kept) == {"train": 32, "val": 8}
    new = assign_splits(folder_of(some(40)), SplitSettings(), keep_test_absent=True)
    assert counted(new) == {"train": 32, "val": 8}


def test_new_images_fill_all_sides_and_old_ones_stay() -> None:
    old = some(30, "train") + some(10, "val", start=30)
    before = folder_of(old + some(60, start=40))
    after = assign_splits(before, SplitSettings(val_fraction=0.2, test_fraction=0.2))
    assert all(sides(after)[image.path] == image.split for image in old)
    assert counted(after) == {"train": 60, "val": 20, "test": 20}


def test_what_an_earlier_fit_dealt_out_fills_no_side_anew() -> None:
    old = folder_of(some(40, "train"))
    assert assign_splits(old, SplitSettings(), only_new=True) == old
    grown = assign_splits(
        folder_of(some(40, "train") + some(20, start=40)), SplitSettings(), only_new=True
    )
    assert all(sides(grown)[image.path] == "train" for image in old.images)
    assert set(counted(grown)) == set(SPLITS)
    # A class of the earlier fit need not have training images in this folder.
    elsewhere = folder_of([*some(4, "train"), *some(4, "test", label=1)])
    assert assign_splits(elsewhere, SplitSettings(), only_new=True) == elsewhere


@pytest.mark.parametrize("by_group", [True, False])
def test_what_belongs_together_stays_together(by_group: bool) -> None:
    images = some(60)
    if by_group:
        images = [replace(image, group=str(i // 4)) for i, image in enumerate(images)]
    together = None if by_group else [i // 4 for i in range(60)]
    after = assign_splits(folder_of(images), SplitSettings(), together=together)
    blocks = Counter((int(path.stem) // 4, side) for path, side in sides(after).items())
    assert set(blocks.values()) == {4}
    assert counted(after) == {"train": 36, "val": 12, "test": 12}


def test_a_given_grouping_stands_for_the_images_own() -> None:
    images = [replace(image, group="one") for image in some(20)]
    after = assign_splits(folder_of(images), SplitSettings(), together=[None] * 20)
    assert counted(after) == {"train": 12, "val": 4, "test": 4}


def test_what_belongs_together_is_held_out_by_one_fold() -> None:
    images = [replace(image, group=str(i // 4)) for i, image in enumerate(some(60, "train"))]
    after = assign_splits(folder_of(images), SplitSettings(folds=3, test_fraction=0.0))
    folds = Counter((image.group, image.fold) for image in after.images)
    assert set(folds.values()) == {4}
    assert Counter(image.fold for image in after.images) == {0: 20, 1: 20, 2: 20}


@given(st.integers(2, 5), st.integers(0, 4), st.booleans(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_fold_is_the_val_side_of_everything_that_is_not_test(
    folds: int, fold: int, has_val: bool, seed: int
) -> None:
    fold %= folds
    images = [*some(20, "train"), *some(20, "train", label=1), *some(15, "test", start=20)]
    if has_val:
        images += some(10, "val", start=40)
    options = SplitSettings(folds=folds, fold=fold, seed=seed)
    after = assign_splits(folder_of(images), options)
    for image in after.images:
        assert (image.split == "test") == (image.fold is None)
        assert (image.split == "val") == (image.fold == fold)
    pool = [image for image in after.images if image.fold is not None]
    assert counted(after)["test"] == 15
    per_fold = Counter(image.fold for image in pool)
    assert set(per_fold) == set(range(folds))
    assert max(per_fold.values()) - min(per_fold.values()) <= 2
    again = assign_splits(after, options)
    assert again == after
    other = assign_splits(after, replace(options, fold=(fold + 1) % folds))
    assert {i.path: i.fold for i in other.images} == {i.path: i.fold for i in after.images}


def test_folds_without_a_fold_hold_out_a_val_side_only_where_one_is_given() -> None:
    images = [*some(20, "train"), *some(5, "val", start=20), *some(5, "test", start=25)]
    given_val = assign_splits(folder_of(images), SplitSettings(folds=5))
    assert counted(given_val) == {"train": 20, "val": 5, "test": 5}
    assert Counter(image.fold for image in given_val.images) == {
        **dict.fromkeys(range(5), 5),
        None: 5,
    }
    unsplit = assign_splits(folder_of(some(25)), SplitSettings(folds=5, test_fraction=0.2))
    assert counted(unsplit) == {"train": 20, "test": 5}


def test_folds_that_are_known_are_counted() -> None:
    images = [replace(image, fold=i % 3) for i, image in enumerate(some(12, "train"))]
    taken = assign_splits(folder_of(images + some(4, "test", start=12)), SplitSettings(fold=2))
    assert {image.fold for image in taken.images} == {0, 1, 2, None}
    new = assign_splits(folder_of(images + some(40, start=12)), SplitSettings(0.0, 0.0, fold=2))
    assert {image.fold for image in new.images} == {0, 1, 2}
    assert all((image.split == "val") == (image.fold == 2) for image in taken.images)
    more = assign_splits(folder_of(images), SplitSettings(folds=3, test_fraction=0.0))
    assert [image.fold for image in more.images] == [image.fold for image in images]
    with pytest.raises(UsageError, match="at least 3 folds, as in the manifest, found 2"):
        assign_splits(folder_of(images), SplitSettings(folds=2))
    with pytest.raises(
        UsageError, match=r"^Expected folds .* found fold alone; give --data\.folds\.$"
    ):
        assign_splits(folder_of(some(4)), SplitSettings(fold=0))


def test_a_class_that_cannot_be_learnt_is_refused() -> None:
    lost = folder_of([*some(2, "train"), *some(2, "val", label=1), *some(2, "test", label=2)])
    assert classes_missing_from_train(lost) == ["bee", "cat"]
    for call in (check_classes_in_train, lambda folder: assign_splits(folder, SplitSettings())):
        with pytest.raises(ImageFolderError, match="found 'bee', 'cat' only in val and test of"):
            call(lost)
    with pytest.raises(ImageFolderError, match="found 'cat' only in test of"):
        check_classes_in_train(folder_of([*some(2, "train"), *some(2, "test", label=2)]))


def test_a_class_is_learnt_from_new_images_and_needs_none_without_a_training_side() -> None:
    learnt = [
        [*some(2, "train"), *some(2, "test", label=1), *some(2, None, label=1, start=2)],
        [*some(2, "test"), *some(2, "val", label=1)],  # nothing to train on
        [*some(2, "train"), *some(2, "test")],  # bee and cat: of a checkpoint, without an image
    ]
    for images in learnt:
        assert classes_missing_from_train(folder_of(images)) == []
        check_classes_in_train(folder_of(images))


@pytest.mark.parametrize(
    "wrong",
    [
        {"folds": 1},
        {"folds": 0},
        {"folds": 3, "fold": 3},
        {"folds": 3, "fold": -1},
        {"val_fraction": 1.0},
        {"test_fraction": -0.1},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"found {next(reversed(wrong.values()))}"):
        SplitSettings(**wrong)  # type: ignore[arg-type]


def test_the_folds_that_there_are_are_named() -> None:
    with pytest.raises(UsageError, match=r"one of 0 \.\.\. 2, found 3"):
        SplitSettings(folds=3, fold=3)


@pytest.mark.parametrize("right", [{"folds": 2}, {"folds": 2, "fold": 0}, {"folds": 2, "fold": 1}])
def test_the_least_folds_are_two_counted_from_nought(right: dict[str, int]) -> None:
    assert SplitSettings(**right).folds == 2  # type: ignore[arg-type]


def test_an_image_is_known_by_its_place_below_the_root() -> None:
    composed, spelled = "caf\u00e9.png", "cafe\u0301.png"
    paths = [ROOT / "ant" / spelled, ROOT / "ant/../bee/1.png", Path("/elsewhere/2.png")]
    images = [LabelledImage(path, 0) for path in paths]
    assert relative_names(ROOT, images) == [f"ant/{spelled}", "bee/1.png", "/elsewhere/2.png"]
    assert image_keys(ROOT, images) == [f"ant/{composed}", "bee/1.png", "/elsewhere/2.png"]
    assert names_below(ROOT, images) == [f"ant/{composed}", "bee/1.png", "../elsewhere/2.png"]


def test_a_root_and_its_images_may_be_relative(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    images = [LabelledImage(Path("r/ant/1.png"), 0), LabelledImage(tmp_path / "r/bee/2.png", 1)]
    for root in ("r", tmp_path / "r"):
        assert relative_names(root, images) == ["ant/1.png", "bee/2.png"]


@pytest.mark.parametrize("options", [{}, {"folds": 2, "fold": 0, "test_fraction": 0.0}])
def test_another_seed_holds_out_other_images(options: dict[str, float]) -> None:
    dealt = [assign_splits(folder_of(some(40)), SplitSettings(seed=s, **options)) for s in (1, 2)]  # type: ignore[arg-type]
    assert sides(dealt[0]) != sides(dealt[1])
    assert counted(dealt[0]) == counted(dealt[1])
