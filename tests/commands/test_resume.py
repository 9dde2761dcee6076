"""``fit --resume`` and ``fit --ckpt_path``: whatever stopped a fit, it ends as if nothing had."""

import csv
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from finetune.cli import main
from finetune.commands.fit import parse_time
from finetune.commands.resume import Resumed, copy_candidates, resumed_run
from finetune.errors import UsageError
from finetune.training.checkpoints import ENTRY, read_content
from tests.own_process import exit_code, killed_at_rename, started

SMALL = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--trainer.accelerator=cpu",
    "--data.cache=off",
    "--data.batch_size=8",
    "--data.num_workers=0",
    "--name=run",
)
TWO_PHASES = (*SMALL, "--model.strategy=partial:1", "--trainer.max_epochs=3", "--model.lr=0.003")
EARLY = ("--model.strategy=head-then-all", "--trainer.max_epochs=8", "--model.lr=0.2")
BASELINE = ("--model.backbone=baseline_cnn", "--trainer.max_epochs=2")
TORTURE = "TORTURE" in os.environ  # every commit point instead of some


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def content(run: Path) -> dict[str, object]:
    """All that a run folder holds: of checkpoints what is in them, of times nothing."""
    found: dict[str, object] = {}
    for name, raw in files(run).items():
        if name.endswith(".ckpt"):
            found[name] = read_content(run / name)[ENTRY]["checksums"]
        elif name == "metrics.json":
            figures = json.loads(raw)
            assert figures["fit"].pop("seconds") > 0
            found[name] = figures
        else:
            found[name] = raw
    return found


def fit_until(after: int, *arguments: str) -> None:
    """Killed at a rename of a checkpoint, if there are as many."""
    assert killed_at_rename(after, arguments) in (-signal.SIGKILL, 0)


@contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    here = Path.cwd()
    os.chdir(folder)
    yield folder / "runs" / "run-1"
    os.chdir(here)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> Path:
    """An undisturbed run of two phases."""
    with working_in(tmp_path_factory.mktemp("whole")) as run:
        assert main(["fit", f"--data.root={colour_folder}", *TWO_PHASES]) == 0
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> Path:
    """The same, killed in its second phase before the end of the second epoch."""
    with working_in(tmp_path_factory.mktemp("stopped")) as run:
        fit_until(4, "fit", f"--data.root={colour_folder}", *TWO_PHASES)
    return run


@pytest.fixture
def own(stopped: Path, tmp_path: Path) -> Path:
    """A copy in another place: nothing in a run folder is an absolute path of it."""
    return Path(shutil.copytree(stopped, tmp_path / "elsewhere" / "moved"))


def test_resume_means_the_runs_settings_and_its_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    config = ["--config", str(tmp_path / "config.yaml")]
    last = tmp_path / "checkpoints" / "last.ckpt"
    for resume in (["--resume", str(tmp_path)], [f"--resume={tmp_path}"]):
        for there in (False, True):
            if there:
                last.touch()
            checkpoint = ["--ckpt_path", str(last)] if there else []  # else it begins anew
            beside = ["--time-limit", "5m"]
            found = resumed_run([*resume, *beside])
            assert found == Resumed(tmp_path, [*config, *checkpoint, *beside], beside)
        last.unlink()
    assert resumed_run(["--data.root", "x"]) is None


def test_a_stop_between_two_phases_says_how_to_resume(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped_later(cli: object, folder: Path, *_: object, **__: object) -> NoReturn:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.commands.fit.run_phases", stopped_later)
    assert main(["fit", f"--data.root={colour_folder}", *TWO_PHASES, "--name=x"]) == 130
    shown = capsys.readouterr()
    assert "stopped; resume with: finetune fit --resume runs/x-1" in shown.out
    assert shown.err == "finetune: stopped.\n"


@pytest.mark.parametrize("link", ["latest", "by-hand"])
def test_a_link_to_a_run_is_resolved_before_the_fit_can_move_it(tmp_path, link):
    run = tmp_path / "runs" / "x-1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").touch()
    (run.parent / "latest").symlink_to("x-1")
    (run.parent / "by-hand").symlink_to("latest")
    found = resumed_run(["--resume", str(run.parent / link)])
    assert found.run == run.resolve()
    assert not [each for each in found.arguments if link in each]


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "nowhere"]])
def test_no_run_to_resume(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="--resume"):
        resumed_run(arguments)


@pytest.mark.parametrize(
    "options", [["--model.strategy=head"], EARLY, BASELINE], ids=["head", "early", "baseline"]
)
def test_resuming_a_finished_run_changes_no_byte(
    options: list[str], colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, "--patience=1", *options]) == 0
    run = Path("runs/run-1")
    before = files(run)
    capsys.readouterr()
    assert main(["fit", f"--resume={run}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert files(run) == before
    assert main(["fit", f"--resume={run}", "--trainer.max_epochs=20"]) == 2
    assert "--model.pretrained runs/run-1/checkpoints/best.ckpt" in capsys.readouterr().err
    assert files(run) == before


@pytest.mark.parametrize("after", range(9) if TORTURE else (0, 5))
def test_a_killed_fit_resumes_to_the_undisturbed_run(
    after: int, whole: Path, colour_folder: Path, tmp_path: Path
) -> None:
    """The folder is moved before it is resumed, and killed once more where there is time."""
    fit_until(after, "fit", f"--data.root={colour_folder}", *TWO_PHASES)
    run = Path("runs/run-1").rename(tmp_path / "moved")
    if after < 3:
        fit_until(1, "fit", f"--resume={run}")
    assert main(["fit", f"--resume={run}"]) == 0
    assert content(run) == content(whole)


@pytest.fixture(scope="module")
def whole_baseline(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> Path:
    """An undisturbed run of a network from scratch, of one phase."""
    with working_in(tmp_path_factory.mktemp("whole")) as run:
        assert main(["fit", f"--data.root={colour_folder}", *SMALL, *BASELINE]) == 0
    return run


@pytest.mark.parametrize("after", range(5) if TORTURE else (2,))
def test_a_killed_baseline_resumes_to_the_undisturbed_run(
    after: int, whole_baseline: Path, colour_folder: Path, tmp_path: Path
) -> None:
    fit_until(after, "fit", f"--data.root={colour_folder}", *SMALL, *BASELINE)
    run = Path("runs/run-1").rename(tmp_path / "moved")
    assert main(["fit", f"--resume={run}"]) == 0
    assert content(run) == content(whole_baseline)


def killed_after(seconds: float, *arguments: str) -> None:
    """SIGKILL to a process of its own that runs the command."""
    process = started(main, arguments)
    time.sleep(seconds)
    process.kill()
    exit_code(process)


@pytest.mark.parametrize("moment", range(15 if TORTURE else 1))
def test_a_fit_killed_at_random_resumes_to_the_undisturbed_run(
    moment: int, whole: Path, colour_folder: Path, tmp_path: Path
) -> None:
    """Killed twice, wherever it happens to be; before its first record there is no run."""
    chance = random.Random(moment)
    killed_after(chance.uniform(0.2, 4), "fit", f"--data.root={colour_folder}", *TWO_PHASES)
    run = Path("runs/run-1")
    if not (run / "config.yaml").is_file():
        shutil.rmtree(run, ignore_errors=True)
        assert main(["fit", f"--data.root={colour_folder}", *TWO_PHASES]) == 0
    run = run.rename(tmp_path / "moved")
    killed_after(chance.uniform(0.2, 2), "fit", f"--resume={run}")
    assert main(["fit", f"--resume={run}"]) == 0
    assert content(run) == content(whole)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_killed_write_of_records_is_made_up_for(
    name: str, whole: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    rename = os.replace

    def replace(source: str, target: str) -> None:
        if Path(target).name == name:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            main(["fit", f"--data.root={colour_folder}", *TWO_PHASES])
    run = Path("runs/run-1")
    if name == "config.yaml":
        assert not run.exists(), "nothing had been fitted"
        return
    assert main(["fit", f"--resume={run}"]) == 0
    assert content(run) == content(whole)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.lr=0.1", "--model.pretrained"),
        ("--model.weight_decay=0.3", "--model.pretrained"),
        ("--model.optimizer=sgd", "--model.pretrained"),
        ("--model.l2_sp=0.1", "--model.pretrained"),
        ("--model.strategy=all", "--model.pretrained"),
        ("--model.image_size=64", "--model.pretrained"),
        ("--model.pretrained=true", "--model.pretrained"),
        ("--data.batch_size=4", "--model.pretrained"),
        ("--data.augmentation=strong", "--model.pretrained"),
        ("--data.val_fraction=0.3", "--model.pretrained"),
        ("--seed_everything=3", "seed_everything"),
        ("--monitor=val/accuracy", "--model.pretrained"),
        ("--name=other", "leave it out"),
        ("--runs=elsewhere", "leave it out"),
    ],
)
def test_an_option_that_cannot_have_an_effect_is_refused(
    option: str, message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(own)
    assert main(["fit", f"--resume={own}", option]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert option.partition("=")[0].removeprefix("--") in error
    assert "\n" not in error
    assert files(own) == before


def test_fewer_epochs_than_are_over_are_refused(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own, "more")
    fit_until(2, "fit", "--resume=more")
    over = read_content(Path("more/checkpoints/last.ckpt"))["epoch"] + 1
    assert over > 1
    assert main(["fit", "--resume=more", "--trainer.max_epochs=1"]) == 2
    assert f"at least the {over} epochs" in capsys.readouterr().err


def test_options_that_can_have_an_effect_have_it_and_are_remembered(own: Path) -> None:
    notes = [line for line in (own / "config.yaml").read_text().splitlines() if line[0] == "#"]
    assert main(["fit", f"--resume={own}", "--trainer.max_epochs=4", "--data.cache=memory"]) == 0
    assert read_content(own / "checkpoints" / "last.ckpt")["epoch"] == 3
    text = (own / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["trainer"]["max_epochs"] == 4
    assert config["data"]["cache"] == "memory"
    assert config["data"]["manifest"] is None, "what was given, not what was found"
    assert [line for line in text.splitlines() if line[0] == "#"] == notes
    with (own / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


def test_a_same_value_given_again_is_no_other(own: Path, whole: Path) -> None:
    assert main(["fit", f"--resume={own}", "--model.lr=0.003"]) == 0
    assert content(own).keys() == content(whole).keys()


def test_another_run_goes_on_from_a_checkpoint_with_what_was_found(
    own: Path, whole: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = own / "checkpoints" / "last.ckpt"
    call = ["fit", f"--ckpt_path={last}", f"--data.root={colour_folder}", "--trainer.max_epochs=3"]
    small = ["--trainer.accelerator=cpu", "--data.num_workers=0", "--data.cache=off"]
    assert main([*call, *small, "--model.lr=0.1"]) == 2
    assert "model.lr" in capsys.readouterr().err
    assert main([*call, *small, "--name=next"]) == 0
    new, old = content(Path("runs/next-1")), content(whole)
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert new[name]["state_dict"] == old[name]["state_dict"]


def test_candidates_go_along_into_a_new_folder(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for name in ("best.ckpt", "phase2.ckpt", "last.ckpt"):
        (old / name).write_text(name)
    copy_candidates(old, new)
    assert {path.name: path.read_text() for path in new.iterdir()} == {
        "best.ckpt": "best.ckpt",
        "phase2.ckpt": "phase2.ckpt",
    }


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7), (None, None)]
)
def test_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "ten", "5 d", "-3s"])
def test_no_time(text):
    with pytest.raises(UsageError, match="10m"):
        parse_time(text)
