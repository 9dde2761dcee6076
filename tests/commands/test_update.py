"""``fit --update RUN``: what was there keeps its side, and nothing that tested trains."""

import csv
import os
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.cli import main
from finetune.commands.update import updated_run
from finetune.errors import UsageError
from finetune.spec.images import file_id
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoints import Checkpoint, read_checkpoint

HEAD = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--model.strategy=head",
    "--trainer.accelerator=cpu",
    "--data.cache=off",
    "--data.num_workers=0",
    "--name=run",
)


class Grown(NamedTuple):
    """A run, the folder that has grown since, and the update with all that it printed."""

    root: Path
    run: Path
    before: dict[str, bytes]
    said: str
    updated: Path


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 40, (48, 48, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def grow(root: Path) -> None:
    """A class is added and images of old ones; one is lost, one has another label."""
    for number in range(8):
        paint(root / "aqua" / f"{number}.png", (40, 200, 220), 100 + number)
        paint(root / "red" / f"new{number}.png", (200, 50, 40), 200 + number)
    (root / "blue" / "01.png").unlink()
    (root / "blue" / "02.png").rename(root / "green" / "was blue.png")


@pytest.fixture(scope="module")
def grown(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    place = tmp_path_factory.mktemp("grown")
    root = Path(shutil.copytree(colour_folder, place / "images"))
    fit = ["fit", f"--data.root={root}", f"--runs={place}", *HEAD, "--model.refit=false"]
    assert main(fit) == 0
    run = place / "run-1"
    before = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    grow(root)
    with redirect_stdout(StringIO()) as said:
        assert main(["fit", "--update", str(run)]) == 0
    return Grown(root, run, before, said.getvalue(), place / "run-2")


def best(run: Path) -> Checkpoint:
    return read_checkpoint(run / "checkpoints" / "best.ckpt")


def ids(run: Path, *sides: str) -> set[str]:
    record = SplitRecord.from_entry(best(run).details)
    pairs = zip(record.images, record.standings, strict=True)
    return {image.id for image, at in pairs if at.side in sides}


def test_the_old_run_stays_as_it_was(grown: Grown) -> None:
    assert {str(p): p.read_bytes() for p in grown.run.rglob("*") if p.is_file()} == grown.before


def test_old_images_keep_their_side_and_new_ones_are_dealt(grown: Grown) -> None:
    there = {file_id(path) for path in grown.root.rglob("*.png")}
    for side in ("train", "val", "test"):
        old = ids(grown.run, side) & there
        assert old, side
        assert old <= ids(grown.updated, side)
        assert ids(grown.updated, side) - ids(grown.run, "train", "val", "test"), side
    assert not ids(grown.run, "test") & ids(grown.updated, "train", "val")
    with (grown.updated / "split.csv").open(newline="", encoding="utf-8") as table:
        assert {row["label"] for row in csv.DictReader(table)} == {"aqua", "blue", "green", "red"}


def test_val_images_of_a_refitted_layer_are_val_again(colour_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(colour_folder, tmp_path / "images"))
    runs = tmp_path / "runs"
    assert main(["fit", f"--data.root={root}", f"--runs={runs}", *HEAD]) == 0
    assert not ids(runs / "run-1", "val")
    grow(root)
    assert main(["fit", "--update", str(runs / "run-1")]) == 0
    before, after = (sides_of(runs / name) for name in ("run-1", "run-2"))
    assert {side for path, side in before.items() if path in after} == {"train", "val", "test"}
    assert all(after[path] == side for path, side in before.items() if path in after)
    all_labelled = {file_id(root / path) for path, side in after.items() if side != "test"}
    assert all_labelled <= ids(runs / "run-2", "train")
    assert not ids(runs / "run-1", "test") & ids(runs / "run-2", "train")


def sides_of(run: Path) -> dict[str, str]:
    with (run / "split.csv").open(newline="", encoding="utf-8") as table:
        return {row["path"]: row["split"] for row in csv.DictReader(table)}


def test_what_differs_is_said(grown: Grown) -> None:
    assert "16 new, 1 gone, 1 relabelled; 34 are as they were" in grown.said
    assert "\nnew: aqua\n" in grown.said


def test_new_images_of_which_none_is_val_are_said_to_judge_nothing(
    grown: Grown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no new image is val" not in grown.said
    root = Path(shutil.copytree(grown.root, tmp_path / "images"))
    paint(root / "red" / "one more.png", (200, 50, 40), 300)
    update = ["fit", "--update", str(grown.updated), "--data.root", str(root), "--runs=runs"]
    assert main([*update, "--data.val_fraction=0.01", "--data.test_fraction=0.01"]) == 0
    assert "no new image is val (1 train)" in capsys.readouterr().out


def test_the_final_layer_is_that_of_a_fit_from_scratch_on_these_sides(grown: Grown) -> None:
    anew = finetune.fit(
        grown.root,
        manifest=grown.updated / "split.csv",
        pretrained=str(grown.run / "checkpoints" / "best.ckpt"),
        backbone="test_resnet",
        image_size=32,
        strategy="head",
        accelerator="cpu",
        cache="off",
        num_workers=0,
        quiet=True,
    )
    ours, theirs = best(grown.updated).state_dict, best(anew.folder).state_dict
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)
    backbone = {name: tensor for name, tensor in ours.items() if ".fc." not in name}
    first = best(grown.run).state_dict
    assert all(torch.equal(tensor, first[name]) for name, tensor in backbone.items())


def test_old_and_new_are_compared_on_the_old_test_images(grown: Grown) -> None:
    tested = len(ids(grown.run, "test"))
    assert f"new run-2 beside old run-1, on its {tested} test images" in grown.said
    assert "class" in grown.said.partition(f"its {tested} test images")[2]
    figures = finetune.Run(grown.updated).metrics["update"]
    assert figures.keys() >= {"accuracy", "accuracy_before", "p_value"}
    page = (grown.updated / "update.html").read_text(encoding="utf-8")
    assert "Class by class" in page
    assert "old run-1" in page


@pytest.mark.parametrize(
    "beside",
    [
        ["--model.backbone=resnet18"],
        ["--data.task", "multilabel"],
        ["--model.pretrained=true"],
        ["--data.fold=1"],
        ["--resume=elsewhere"],
        ["--seeds=3"],
    ],
    ids=lambda beside: beside[0],
)
def test_what_the_run_has_decided_is_refused(grown: Grown, beside: list[str]) -> None:
    with pytest.raises(UsageError, match=rf"no {beside[0].partition('=')[0]} beside --update"):
        updated_run(["--update", str(grown.run), *beside])


def test_a_command_with_members_beside_an_update_is_refused(
    grown: Grown, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", f"--update={grown.run}", "--seeds=2"]) == 2
    assert "no --seeds beside --update" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "nowhere"])
def test_no_run_to_update(value: str) -> None:
    with pytest.raises(UsageError, match="after --update"):
        updated_run([f"--update={value}"])
    assert updated_run(["--data.root=x"]) is None


def test_another_task_is_refused(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(os.listdir(grown.root / "red"))[:6]
    rows = [f"red/{name},{'warm|red' if n % 2 else 'warm'}" for n, name in enumerate(names)]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert main(["fit", f"--update={grown.run}", "--data.manifest=labels.csv"]) == 2
    assert "another task is a new fit" in capsys.readouterr().err


def test_weights_of_ours_hold_out_nothing_that_has_trained_them(
    grown: Grown, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nobody says --update: such as a new fit by the configuration of one."""
    weights = f"--model.pretrained={grown.run / 'checkpoints' / 'best.ckpt'}"
    again = ["fit", f"--data.root={grown.root}", *HEAD, weights, "--data.seed=5"]
    assert main([*again, "--data.folds=3", "--data.fold=0"]) == 2
    assert "which would hold out what has trained them" in capsys.readouterr().err
    assert main(again) == 0
    assert not ids(grown.run, "train") & ids(Path("runs/run-1"), "val", "test")
    assert not ids(grown.run, "test") & ids(Path("runs/run-1"), "train")
