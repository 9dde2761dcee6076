"""fit, validate, test and predict as a user calls them, and Lightning's traps closed."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from finetune import ImageClassifier
from finetune.cli import main
from finetune.training.checkpoints import read_checkpoint

SMALL = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--data.cache=off",
)


def fit(folder: Path, *options: str) -> Path:
    """Fit in the working folder and return the new run's folder."""
    before = set(Path("runs").glob("*-*")) if Path("runs").is_dir() else set()
    assert main(["fit", f"--data.root={folder}", *SMALL, *options]) == 0
    (run,) = set(Path("runs").glob("*-*")) - before
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> Path:
    """A finished run that no test may change."""
    place = tmp_path_factory.mktemp("finished")
    here = Path.cwd()
    os.chdir(place)
    try:
        return (place / fit(colour_folder)).absolute()
    finally:
        os.chdir(here)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(run, tmp_path / "own" / run.name))


def figures(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_a_run_folder_holds_what_it_says(run: Path) -> None:
    for name in ("config.yaml", "split.csv", "metrics.csv", "metrics.json"):
        assert (run / name).stat().st_size > 0, name
    assert (run.parent / "latest").resolve() == run
    assert {"accuracy", "balanced_accuracy", "nll", "calibration_error"} <= set(figures(run)["val"])


def test_the_figures_are_those_of_the_best_checkpoint(run: Path) -> None:
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    logits, labels = best.details["val"]["logits"], best.details["val"]["labels"]
    accuracy = float((logits.argmax(-1) == labels).float().mean())
    assert figures(run)["val"]["accuracy"] == pytest.approx(accuracy)


def test_the_checkpoint_is_self_sufficient_and_plain(run: Path, colour_folder: Path) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["finetune"]["class_names"] == ["blue", "green", "red"]
    classifier = ImageClassifier.from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert classifier.class_names == ("blue", "green", "red")
    assert classifier.preprocessing.image_size == 32
    assert not classifier.training


def test_a_second_identical_fit_makes_the_next_run(colour_folder: Path, capsys) -> None:
    first, second = fit(colour_folder), fit(colour_folder)
    assert [first.name, second.name] == ["test_resnet-1", "test_resnet-2"]
    assert (first / "config.yaml").is_file()
    assert figures(first)["val"] == figures(second)["val"], "the same seed gives other figures"


def test_validate_and_test_write_beside_the_fit(own_run: Path, colour_folder: Path) -> None:
    checkpoint = own_run / "checkpoints" / "best.ckpt"
    log = (own_run / "metrics.csv").read_bytes()
    before = figures(own_run)["val"]
    for verb in ("validate", "test"):
        arguments = [verb, f"--ckpt_path={checkpoint}", f"--data.root={colour_folder}"]
        assert main([*arguments, "--trainer.accelerator=cpu"]) == 0
    after = figures(own_run)
    assert {k: after["val"][k] for k in before} == pytest.approx(before, rel=1e-4)
    assert "accuracy" in after["test"]
    assert (own_run / "metrics.csv").read_bytes() == log, "the log of the fit was overwritten"


def test_another_folder_does_not_overwrite_the_test_of_the_first(
    own_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "others"
    shutil.copytree(colour_folder, other)
    best = f"--ckpt_path={own_run}/checkpoints/best.ckpt"
    small = ["--trainer.accelerator=cpu", "--data.cache=off"]
    assert main(["test", best, f"--data.root={colour_folder}", *small]) == 0
    first = figures(own_run)["test"]
    page = (own_run / "report" / "index.html").read_bytes()
    for _ in range(2):  # a second time replaces its own
        assert main(["test", best, f"--data.root={other}", *small]) == 0
        after = figures(own_run)
        assert after["test"] == first
        assert after["test-others"]["images"] == str(other.resolve())
        assert after["test-others"]["ms_per_image"] > 0
        assert set(after) == {"fit", "val", "test", "test-others"}
    assert (own_run / "report" / "index.html").read_bytes() == page
    assert (own_run / "report-others" / "index.html").is_file()


def test_a_test_lists_an_image_of_no_class_among_the_first_suspects(
    own_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "with a placeholder"
    shutil.copytree(colour_folder, images / "test")
    Image.effect_mandelbrot((48, 48), (-3, -2.5, 2, 2.5), 100).save(images / "test/red/no.png")
    for name in ("blue", "green", "red"):
        (images / "train" / name).mkdir(parents=True)
        shutil.copy(colour_folder / name / "00.png", images / "train" / name / "other.png")
    best = f"--ckpt_path={own_run}/checkpoints/best.ckpt"
    assert main(["test", best, f"--data.root={images}", "--trainer.accelerator=cpu"]) == 0
    (report,) = own_run.glob("report*")
    with (report / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert "no.png" in {Path(row["path"]).name for row in rows[:5]}
    assert "no class" in {row["reason"] for row in rows[:5]}
    assert (report / "figures" / "embedding.png").is_file()


def test_a_limited_test_reports_on_what_it_saw(own_run: Path, colour_folder: Path) -> None:
    best = f"--ckpt_path={own_run}/checkpoints/best.ckpt"
    # A share, not a number: 1 may be read as 1.0, whichever library wrote its Union first.
    half = "--trainer.limit_test_batches=0.5"
    limited = ["--data.batch_size=4", half, "--trainer.accelerator=cpu"]
    assert main(["test", best, f"--data.root={colour_folder}", *limited]) == 0
    with (own_run / "report" / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_no_training_image_is_ever_tested(own_run: Path, colour_folder: Path) -> None:
    checkpoint = own_run / "checkpoints" / "best.ckpt"
    main(["test", f"--ckpt_path={checkpoint}", f"--data.root={colour_folder}"])
    with (own_run / "split.csv").open(newline="") as file:
        side = {Path(row["path"]).name + row["label"]: row["split"] for row in csv.DictReader(file)}
    answers = next(own_run.rglob("predictions.csv"))
    with answers.open(newline="") as file:
        tested = [Path(row["path"]).name + row["label"] for row in csv.DictReader(file)]
    assert tested
    assert {side[name] for name in tested} == {"test"}


def test_a_checkpoint_alone_is_enough(
    run: Path, colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "alone.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", checkpoint)
    arguments = [f"--ckpt_path={checkpoint}", f"--data.root={colour_folder}"]
    assert main(["test", *arguments]) == 0
    assert figures(tmp_path / "runs" / "test-1")["test"]
    output = tmp_path / "answers.csv"
    call = ["predict", str(checkpoint), str(colour_folder), "--output", str(output)]
    assert main([*call, "--max-pixels=9"]) == 1
    assert "at most 9 pixels" in capsys.readouterr().err
    assert main(call) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    assert {row["prediction"] for row in rows} <= {"blue", "green", "red"}


def test_figures_are_shown_though_they_cannot_be_kept(
    own_run: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def disk_is_full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    monkeypatch.setattr("finetune.files.sync", disk_is_full)
    checkpoint = own_run / "checkpoints" / "best.ckpt"
    assert main(["test", f"--ckpt_path={checkpoint}", f"--data.root={colour_folder}"]) == 1
    shown = capsys.readouterr()
    assert "test: accuracy" in shown.out
    assert "metrics.json" in shown.err
    assert shown.err.count("\n") == 1
    assert {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()} == before


def test_runs_below_the_images_are_refused(colour_folder: Path, tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(colour_folder, tmp_path / "images"))
    before = sorted(folder.rglob("*"))
    for runs in (folder, folder / "runs"):
        assert main(["fit", f"--data.root={folder}", f"--runs={runs}", *SMALL]) == 2
        assert "outside the images" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_options_beside_a_checkpoint_win_or_are_refused(own_run: Path, colour_folder, capsys):
    checkpoint = own_run / "checkpoints" / "best.ckpt"
    arguments = ["test", f"--ckpt_path={checkpoint}", f"--data.root={colour_folder}"]
    assert main([*arguments, "--model.backbone=test_efficientnet"]) == 1
    assert "found others in" in capsys.readouterr().err
    assert main([*arguments, "--data.batch_size=0"]) == 2


def test_classes_come_from_the_data_only_in_fit(
    own_run: Path, colour_folder, tmp_path, capsys
) -> None:
    checkpoint = own_run / "checkpoints" / "best.ckpt"
    fewer = tmp_path / "fewer"
    shutil.copytree(colour_folder / "red", fewer / "test" / "red")
    shutil.copytree(colour_folder / "blue", fewer / "test" / "blue")
    for name in ("red", "blue"):
        shutil.copytree(colour_folder / name, fewer / "train" / name)
    arguments = ["test", f"--ckpt_path={checkpoint}", f"--data.root={fewer}", "--name=fewer"]
    assert main(arguments) == 0, "a folder with fewer classes keeps the checkpoint's indexes"
    shutil.copytree(colour_folder / "red", fewer / "test" / "purple")
    assert main(arguments) == 1
    assert "purple" in capsys.readouterr().err
    assert main(["fit", "--data.root=.", "--model.class_names=[a,b]"]) == 2


def test_the_saved_configuration_makes_the_same_run(run: Path, colour_folder: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["backbone"] == "test_resnet"
    assert config["data"]["root"] == str(colour_folder)
    assert main(["fit", f"--config={run / 'config.yaml'}"]) == 0
    assert figures(Path("runs/test_resnet-1"))["val"] == figures(run)["val"]


def test_paths_and_numpy_numbers_as_settings_load_again(tmp_path: Path) -> None:
    classifier = ImageClassifier(
        np.array(["a", "b"]),
        "test_resnet",
        pretrained=False,
        image_size=np.int64(32),
        lr=np.float32(0.5),
    )
    checkpoint = {"state_dict": classifier.state_dict()}
    checkpoint["hyper_parameters"] = dict(classifier.hparams)
    classifier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    again = ImageClassifier.from_checkpoint(tmp_path / "x.ckpt")
    assert again.hparams["lr"] == 0.5
    assert again.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit", "--data.root=absent"], 1, "found nothing"),
        (["fit", "--data.root=empty"], 1, "Expected"),
        (["fit", "--data.root=single"], 1, "a folder of its own"),
        (["fit", "--data.root=around"], 1, "did you mean --data.root around/colours?"),
        (["fit", "--data.root=COLOURS", "--model.backbone=resnt18"], 1, "did you mean resnet18"),
        (["fit", "--data.root=COLOURS", "--model.pretrained=absent.pth"], 1, "found no file"),
        (["fit", "--data.rot=COLOURS"], 2, "--data.root"),
        (["fit", "--data.root=COLOURS", "--model.lr=fast"], 2, "fast"),
        (["fit", "--data.root=COLOURS", "--data.augmentation=lihgt"], 2, "light"),
        (["fit"], 2, "data.root"),
        (["test", "--data.root=COLOURS"], 2, "--ckpt_path"),
        (["test", "--data.root=COLOURS", "--ckpt_path=page.ckpt"], 1, "Expected a checkpoint"),
        (["predict", "page.ckpt", "COLOURS"], 1, "Expected a checkpoint"),
        (["predict", "absent.ckpt", "COLOURS"], 1, "found no file"),
        (["predict", "absent.ckpt", "COLOURS", "--output", "a.xlsx"], 2, ".xlsx"),
    ],
)
def test_bad_input_is_one_clear_line(
    colour_folder: Path, tmp_path: Path, capsys, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(colour_folder / "red", tmp_path / "single" / "red")
    shutil.copytree(colour_folder, tmp_path / "around" / "colours")
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    before = sorted(tmp_path.rglob("*"))
    extra = [option for option in SMALL if option.split("=")[0] not in " ".join(arguments)]
    call = [argument.replace("COLOURS", str(colour_folder)) for argument in arguments]
    assert main([*call, *(extra if call[0] == "fit" else [])]) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert not [path for path in left if path.is_file()], left


def test_a_broken_image_stops_the_fit_before_it_starts(colour_folder, tmp_path, capsys) -> None:
    folder = Path(shutil.copytree(colour_folder, tmp_path / "images"))
    (folder / "red" / "page.jpg").write_text("<html>404</html>")
    assert main(["fit", f"--data.root={folder}", *SMALL]) == 1
    assert "page.jpg" in capsys.readouterr().err
    assert not list(Path("runs").glob("*-*"))


def hear_ctrl_c() -> None:
    """What runs in the background of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_stops_with_130_and_keeps_the_last_checkpoint(colour_folder, tmp_path) -> None:
    options = [option for option in SMALL if "max_epochs" not in option]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "finetune", "fit", f"--data.root={colour_folder}"),
            *options,
            "--trainer.max_epochs=500",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=hear_ctrl_c,
    )
    last = tmp_path / "runs" / "test_resnet-1" / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 600  # of a machine that is busy
    while not last.is_file() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert ImageClassifier.from_checkpoint(last).class_names == ("blue", "green", "red")
