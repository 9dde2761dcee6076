"""``finetune embed`` and ``finetune similar``: points of one space, and what lies near in it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances

import finetune
from finetune import cli
from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.errors import CheckpointMismatchError, DataError, UsageError
from finetune.prediction import predict
from finetune.prediction.feature_space import Features
from finetune.spec.images import file_id
from finetune.training.classifier import ImageClassifier
from finetune.training.features.recorded import recorded_features

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def images(colour_folder: Path) -> list[Path]:
    return sorted(colour_folder.rglob("*.png"))[::4]


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_the_file_holds_what_enters_the_final_layer(
    ending: str, write_probe: WriteCheckpoint, images: list[Path], tmp_path: Path
) -> None:
    path, output = write_probe("e"), tmp_path / f"features{ending}"
    call = ["embed", str(path), *map(str, images), "--cache-dir", str(tmp_path / "cache")]
    assert cli.main([*call, "--output", str(output)]) == 0
    found = Features.from_file(output)
    assert found.paths == tuple(map(str, images))
    assert found.ids == tuple(map(file_id, images))
    classifier = ImageClassifier.from_checkpoint(path).eval()
    reader = ImageReader.of([classifier.preprocessing])
    transform = evaluation_transform(classifier.preprocessing)
    with recorded_features(classifier) as recorded, torch.no_grad():
        classifier(torch.stack([transform(reader(image)) for image in images]))
    torch.testing.assert_close(torch.from_numpy(found.values), recorded[0], rtol=1e-4, atol=1e-5)
    assert cli.main([*call, "--output", str(output)]) == 2  # it is there


@pytest.mark.parametrize(
    "backbone",
    ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "baseline_cnn"],
)
def test_answers_and_files_have_the_same_features(
    backbone: str, images: list[Path], tmp_path: Path
) -> None:
    """What a rule is fitted to and what it judges are one thing in every family."""
    torch.manual_seed(0)
    classifier = ImageClassifier(
        ["a", "b"], backbone=backbone, pretrained=False, image_size=64
    ).eval()
    stored = finetune.prediction.feature_space.features_of(classifier, images)
    with recorded_features(classifier) as recorded:
        predict(classifier, images)
    torch.testing.assert_close(
        torch.from_numpy(stored.values), torch.cat(recorded), rtol=1e-4, atol=1e-4
    )


def test_spaces_are_not_mixed(
    write_probe: WriteCheckpoint, images: list[Path], tmp_path: Path
) -> None:
    cached = {"cache_dir": tmp_path / "cache", "quiet": True}
    one = finetune.embed(write_probe("e"), images, **cached)
    same = finetune.embed(write_probe("noisy", noise=1.0), images[:1], **cached)
    other = finetune.embed(write_probe("vit", backbone="test_vit"), images, **cached)
    assert same.network == one.network  # the final layer is no part of the space
    assert other.network != one.network
    expected = cosine_distances(same.values.astype(float), one.values.astype(float))
    np.testing.assert_allclose(same.distances(one), expected, atol=1e-9)
    with pytest.raises(CheckpointMismatchError, match="one checkpoint"):
        one.distances(other)
    other.save(tmp_path / "other.npz")
    with pytest.raises(CheckpointMismatchError, match="one checkpoint"):
        finetune.similar(write_probe("e"), images[0], among=tmp_path / "other.npz", **cached)


def test_neighbours_are_the_nearest_and_a_copy_is_the_first(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = next(iter(sorted(colour_folder.rglob("*.png"))))
    query = tmp_path / "query.png"
    shutil.copy(image, query)
    sheet = tmp_path / "similar.png"
    call = ["similar", str(write_probe("e")), str(query), "--in", str(colour_folder)]
    call += ["--number", "7", "--figure", str(sheet), "--cache-dir", str(tmp_path / "cache")]
    assert cli.main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ", 1) == ["0.0000", str(image)]
    distances = [float(line.split("  ")[0]) for line in lines[:7]]
    assert distances == sorted(distances)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert cli.main(call) == 2  # the sheet is there
    assert cli.main([*call[:-4], "--figure", str(colour_folder / "x.png")]) == 2
    everything = finetune.embed(write_probe("e"), colour_folder, quiet=True)
    everything.save(tmp_path / "all.parquet")
    found = finetune.similar(
        write_probe("e"), query, among=tmp_path / "all.parquet", number=7, quiet=True
    )
    assert [f"{each.distance:.4f}  {each.path}" for each in found] == lines[:7]
    with pytest.raises(UsageError, match="one image"):
        finetune.similar(write_probe("e"), colour_folder, among=colour_folder, quiet=True)


def test_an_ensemble_answers_by_its_first_classifier(
    write_probe: WriteCheckpoint, images: list[Path], tmp_path: Path
) -> None:
    first, second = write_probe("e"), write_probe("vit", backbone="test_vit")
    finetune.Ensemble.from_checkpoints([first, second]).save(tmp_path / "e.ckpt")
    alone = finetune.embed(first, images, quiet=True)
    assert finetune.embed(tmp_path / "e.ckpt", images, quiet=True).network == alone.network
    predict(ImageClassifier.from_checkpoint(first), images).to_csv(tmp_path / "t.csv")
    finetune.Ensemble.from_checkpoints([tmp_path / "t.csv"]).save(tmp_path / "t.ckpt")
    with pytest.raises(UsageError, match="saved predictions"):
        finetune.embed(tmp_path / "t.ckpt", images, quiet=True)


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_what_is_no_file_of_features_is_one_error(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"odd{ending}"
    with pytest.raises(DataError):
        Features.from_file(path)
    path.write_bytes(b"PK\x03\x04 nothing of ours")
    with pytest.raises(DataError, match="embed"):
        Features.from_file(path)
    good = Features("key", ("a",), ("id",), np.ones((1, 4), np.float32))
    good.save(path)
    assert Features.from_file(path).ids == ("id",)
    for odd in (
        replace(good, paths=("a", "b"), ids=("i", "j")),
        replace(good, values=np.full((1, 4), np.nan, np.float32)),
    ):
        try:
            odd.save(tmp_path / f"broken{ending}")
        except ValueError:  # Parquet refuses columns of different lengths itself
            continue
        with pytest.raises(DataError):
            Features.from_file(tmp_path / f"broken{ending}")
    with pytest.raises(UsageError, match=r"\.npz"):
        good.save(tmp_path / "features.csv")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    np.savez(path, network=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        Features.from_file(path)
