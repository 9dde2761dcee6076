"""Every verb that judges follows the split in the checkpoint, wherever everything lies by then."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cli import main
from finetune.combining.ensemble import Ensemble
from finetune.spec.images import file_id
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoints import read_checkpoint, read_content, write_checkpoint

SMALL = ("--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32")
CPU = ("--trainer.accelerator=cpu",)
CACHE = ("--data.cache=off",)


def write_colours(root: Path, images: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{seed}-{number}.png")
    return root


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run`` of a fit on ``secret images``, beside them; not to be changed."""
    place = tmp_path_factory.mktemp("fitted")
    here = Path.cwd()
    os.chdir(place)
    try:
        write_colours(place / "secret images", 8, 0)
        data = f"--data.root={place / 'secret images'}"
        call = ["fit", data, *SMALL, *CPU, *CACHE, "--model.strategy=head", "--model.refit=false"]
        assert main(call) == 0
        next((place / "runs").glob("test_resnet-1")).rename(place / "run")
    finally:
        os.chdir(here)
    return place


@pytest.fixture
def moved(fitted: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The checkpoint alone, and its images grown by half, renamed and elsewhere."""
    best = fitted / "run" / "checkpoints" / "best.ckpt"
    checkpoint = Path(shutil.copy(best, tmp_path / "a.ckpt"))
    grown = write_colours(tmp_path / "grown", 4, 5)
    for path in (fitted / "secret images").rglob("*.png"):
        shutil.copy(path, grown / path.parent.name / f"old {path.name}")
    (tmp_path / "link").symlink_to(grown, target_is_directory=True)
    return checkpoint, tmp_path / "link"


def trained_ids(checkpoint: Path) -> set[str]:
    record = SplitRecord.from_entry(read_checkpoint(checkpoint).details)
    pairs = zip(record.images, record.standings, strict=True)
    return {image.id for image, at in pairs if at.side == "train"}


def judged_ids(folder: Path) -> set[str]:
    with next(folder.rglob("predictions.csv")).open(newline="") as file:
        return {file_id(row["path"]) for row in csv.DictReader(file)}


def test_test_follows_the_fit_from_anywhere(
    moved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, root = moved
    assert main(["test", f"--ckpt_path={checkpoint}", f"--data.root={root}", *CPU, *CACHE]) == 0
    assert "12 new; 24 are as they were" in capsys.readouterr().out
    judged = judged_ids(tmp_path / "runs")
    assert len(judged) >= 7
    assert not judged & trained_ids(checkpoint)


def test_combining_follows_the_fits_and_no_file_tells_where_the_images_lie(
    moved: tuple[Path, Path], fitted: Path, tmp_path: Path
) -> None:
    checkpoint, root = moved
    other = shutil.copy(checkpoint, tmp_path / "b.ckpt")
    data = [f"--data.root={root}", *CACHE, "--output"]
    files = {verb: str(tmp_path / f"{verb}.ckpt") for verb in ("ensemble", "average", "calibrate")}
    members = [str(checkpoint), str(other)]
    assert main(["ensemble", *members, "--select=greedy", *data, files["ensemble"]]) == 0
    assert main(["average", *members, "--method=greedy", *data, files["average"]]) == 0
    assert main(["calibrate", files["average"], *data, files["calibrate"]]) == 0
    # No root is told to this verb, nor by the checkpoint.
    inside = str(fitted / "secret images" / "red" / "x.ckpt")
    assert main(["ensemble", *members, "--output", inside]) == 2
    trained = trained_ids(checkpoint)
    for path in files.values():
        entry = read_content(path)["finetune"]
        used = {identity for ids in entry["roles"].values() for identity in ids}
        assert used
        assert not used & trained
        for record in Ensemble.from_file(path).fitted_on:
            assert record == SplitRecord.from_entry(read_checkpoint(checkpoint).details)
    for path in [*files.values(), *(fitted / "run" / "checkpoints").iterdir()]:
        assert b"secret images" not in Path(path).read_bytes()
        assert str(root).encode() not in Path(path).read_bytes()


def test_an_older_checkpoint_is_followed_by_the_table_of_its_run(
    moved: tuple[Path, Path], fitted: Path, tmp_path: Path
) -> None:
    checkpoint, root = moved
    run = Path(shutil.copytree(fitted / "run", tmp_path / "old run"))
    content = read_content(checkpoint)
    entry = {key: value for key, value in content["finetune"].items() if key != "split"}
    entry["data"] = {**entry["data"], "root": "/gone", "manifest": None}
    old = run / "checkpoints" / "best.ckpt"
    write_checkpoint(
        old,
        state_dict=content["state_dict"],
        hyper_parameters=content["hyper_parameters"],
        entry=entry,
    )
    assert main(["test", f"--ckpt_path={old}", f"--data.root={root}", *CPU, *CACHE]) == 0
    assert not judged_ids(run) & trained_ids(checkpoint)
    ensemble = Ensemble.from_checkpoints([old])
    assert ensemble.fitted_on[0].digest == SplitRecord.from_entry(content["finetune"]).digest


def test_fits_of_several_splits_are_judged_by_what_none_trained_on(
    moved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, root = moved
    content = read_content(checkpoint)
    entry = dict(content["finetune"])
    record = SplitRecord.from_entry(entry)
    turned = SplitRecord(
        record.settings,
        record.class_names,
        record.images,
        (*record.standings[1:], record.standings[0]),  # another split
    )
    other = tmp_path / "other.ckpt"
    write_checkpoint(
        other,
        state_dict=content["state_dict"],
        hyper_parameters=content["hyper_parameters"],
        entry={**entry, "split": turned.plain},
    )
    output = tmp_path / "both.ckpt"
    call = ["ensemble", str(checkpoint), str(other), f"--data.root={root}", "--share=all"]
    assert main([*call, "--select=greedy", *CACHE, "--output", str(output)]) == 0
    used = set(read_content(output)["finetune"]["roles"]["pick"])
    assert used
    assert not used & (trained_ids(checkpoint) | trained_ids(other))


def test_an_explicit_manifest_may_not_test_what_trained(
    moved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, root = moved
    rows = [f"{path},{path.parent.name},test" for path in sorted(root.rglob("*.png"))]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    call = ["test", f"--ckpt_path={checkpoint}", f"--data.root={root}", *CPU, *CACHE]
    call.append(f"--data.manifest={tmp_path / 'all.csv'}")
    assert main(call) == 1
    assert "--allow-reuse" in capsys.readouterr().err
    assert main([*call, "--allow-reuse"]) == 0
    assert "the figures will flatter" in capsys.readouterr().err
    assert len(judged_ids(tmp_path / "runs")) == 36


@pytest.mark.parametrize("verb", ["average", "ensemble", "calibrate"])
def test_the_options_of_the_split_are_those_of_the_fits_or_refused(
    verb: str, write_probe, colour_folder: Path, tmp_path: Path, capsys
) -> None:
    paths = [write_probe(f"same{seed}", noise=0.1, seed=seed) for seed in range(2)]
    files = paths[:1] if verb == "calibrate" else paths
    greedy = ["--method", "greedy"] if verb == "average" else []
    data = ["--data.root", str(colour_folder), "--data.cache", "off"]
    call = [verb, *map(str, files), *greedy, *data, "--output", str(tmp_path / "x.ckpt")]
    for option, code in {
        "val_fraction=0.3": 2,
        "test_fraction=0": 2,
        "folds=3": 2,
        "seed=x": 2,
        "max_pixels=0": 2,
        "max_decoding_mb=0": 2,
        "test_fraction=0.2": 0,
    }.items():
        assert main([*call, f"--data.{option}"]) == code, option
        error = capsys.readouterr().err
        if code:
            assert error.count("\n") == 1
            assert option.partition("=")[0] in error
