"""A number an image: cells read strictly, texts that give it back, sides by quantiles."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.dataset import balancing_weights
from finetune.data.manifest import read_manifest, write_manifest
from finetune.data.preview import batch_image
from finetune.data.splits import fold_labels, split_labels
from finetune.errors import ManifestError, UsageError
from finetune.spec.labels import cell, from_text, indexes, moved, order, text
from finetune.spec.numbers import number, quantile_bins

FLOATS = st.floats(-1e30, 1e30, allow_nan=False)


@given(FLOATS)
def test_cells_and_texts_give_a_number_back(value: float) -> None:
    assert from_text(text(value)) == value
    assert isinstance(from_text(text(value)), float)
    assert number(cell(value, ["age"])) == value
    assert moved(value, [0], 1) == value
    assert indexes(value) == (0,)
    assert order(value) == (value,)


@pytest.mark.parametrize(("written", "value"), [("31.5", 31.5), (" -7 ", -7), ("+.5E-3", 5e-4)])
def test_numbers_as_programs_write_them(written: str, value: float) -> None:
    assert number(written) == value


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "nan",
        "inf",
        "-Infinity",
        "1_000",
        "1,5",
        "0x10",
        "\u0663",
        "3 4",
        "1e31",
        "1e999",
        "e5",
    ],
)
def test_what_is_no_number(written: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        number(written)


@pytest.mark.parametrize("written", ["nan.", "inf", "1e400", "-3", "1.5.2"])
def test_a_checkpoint_with_another_text_is_damaged(written: str) -> None:
    with pytest.raises(ValueError, match="no "):
        from_text(written)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    return tmp_path


def manifest(root: Path, header: str, *cells: str) -> Path:
    path = root / "m.csv"
    rows = [f"{index}.png,{each}" for index, each in enumerate(cells)]
    path.write_text("\n".join([f"path,{header}", *rows]) + "\n")
    return path


@pytest.mark.parametrize("header", ["age", "label", "Age (years)"])
def test_the_column_of_numbers_names_what_is_predicted(root: Path, header: str) -> None:
    found = read_manifest(manifest(root, header, "3", "1.5", "-2"), root, task="regression")
    assert found.class_names == (header,)
    assert [image.label for image in found.images] == [-2.0, 1.5, 3.0]
    assert found.has_numbers
    write_manifest(root / "again.csv", found)
    assert read_manifest(root / "again.csv", root, task="regression").images == found.images


def test_of_several_columns_one_is_called_label(root: Path) -> None:
    path = manifest(root, "age,note", "3,x", "4,y")
    with pytest.raises(ManifestError, match=r"found path, age, note; name the column"):
        read_manifest(path, root, task="regression")
    path = manifest(root, "label,note,patient", "3,x,a", "4,y,b")
    found = read_manifest(path, root, task="regression", group_column="patient")
    assert [image.label for image in found.images] == [3.0, 4.0]
    path = manifest(root, "age,patient", "3,a", "4,b")
    found = read_manifest(path, root, task="regression", group_column="patient")
    assert (found.class_names, found.images[0].group) == (("age",), "a")


@pytest.mark.parametrize("cell", ["", "nan", "old", "1,5".replace(",", ";")])
def test_a_wrong_cell_is_named_by_its_line(root: Path, cell: str) -> None:
    with pytest.raises(ManifestError, match=r"^Expected a number such as 31\.5 in line 3 of") as e:
        read_manifest(manifest(root, "age", "3", cell, "5"), root, task="regression")
    assert "\n" not in str(e.value)


def test_a_file_with_two_numbers_is_refused(root: Path) -> None:
    path = root / "m.csv"
    path.write_text("path,age\n0.png,3\n0.png,4\n")
    with pytest.raises(ManifestError, match="as '3' and as '4'"):
        read_manifest(path, root, task="regression")


def test_batches_hold_the_numbers_and_nothing_is_said_of_classes(root: Path) -> None:
    path = manifest(root, "age", *(str(10 * index) for index in range(6)))
    data = ImageFolderDataModule(
        root, manifest=path, task="regression", num_workers=0, cache="off", batch_size=2
    )
    data.setup("fit")
    images, numbers = next(iter(data.train_dataloader()))
    assert (numbers.shape, numbers.dtype) == ((2, 1), torch.float32)
    assert {image.label for image in data.images("train")} >= {*numbers[:, 0].tolist()}
    assert data.class_counts("train") == {"age": len(data.images("train"))}
    assert "a number each (age: regression" in data.summary()
    kinds = {finding.kind for finding in data.findings}
    assert not kinds & {"one_class", "imbalance", "class_missing_from_train"}
    batch_image(images, numbers, data.class_names)
    with pytest.raises(UsageError, match="there are no classes"):
        balancing_weights([1.5, 2.5])


@given(st.lists(FLOATS, max_size=200))
def test_bins_are_ordered_and_hold_equals_together(values: list[float]) -> None:
    bins = quantile_bins(values)
    by_value = sorted(zip(values, bins, strict=True))
    assert [each for _, each in by_value] == sorted(bins)
    assert len({*values}) >= len({*zip(values, bins, strict=True)})
    assert all(0 <= each < 10 for each in bins)


@given(st.integers(20, 120), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_side_has_its_share_of_each_bin(images: int, seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(size=images).tolist()
    keys = [f"{index}.png" for index in range(images)]
    sides = split_labels(values, keys, val_fraction=0.2, test_fraction=0.2, seed=seed)
    of_bins = Counter(zip(quantile_bins(values), sides, strict=True))
    for each, size in Counter(quantile_bins(values)).items():
        for side, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            assert abs(of_bins[each, side] - share * size) < 1
    folds = fold_labels(values, keys, folds=4, seed=seed)
    for (_, _), size in Counter(zip(quantile_bins(values), folds, strict=True)).items():
        assert size <= images / len({*quantile_bins(values)}) / 4 + 2


@given(st.integers(20, 80), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_groups_stay_on_one_side(images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, groups = rng.normal(size=images).tolist(), rng.integers(0, 8, images).tolist()
    keys = [f"{index}.png" for index in range(images)]
    sides = split_labels(values, keys, val_fraction=0.2, test_fraction=0.2, groups=groups)
    assert len({*zip(groups, sides, strict=True)}) == len({*groups})
    grown = split_labels(
        [*values, 0.5], [*keys, "new.png"], val_fraction=0.2, previous=[*sides, None]
    )
    assert grown[:-1] == sides
