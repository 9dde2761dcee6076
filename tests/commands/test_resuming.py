import csv

import pytest

from finetune.commands.fit import parse_time
from finetune.commands.resuming import copy_best, keep_earlier_epochs, resumed_arguments
from finetune.errors import UsageError


def test_resume_means_the_runs_settings_and_its_last_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "config.yaml").touch()
    for arguments in (["--resume", str(tmp_path)], [f"--resume={tmp_path}"]):
        found, run = resumed_arguments([*arguments, "--time-limit", "5m"])
        assert run == tmp_path
        assert found == [
            *("--config", str(tmp_path / "config.yaml")),
            *("--ckpt_path", str(tmp_path / "checkpoints" / "last.ckpt")),
            *("--time-limit", "5m"),
        ]
    assert resumed_arguments(["--data.root", "x"]) == (["--data.root", "x"], None)


@pytest.mark.parametrize("link", ["latest", "by-hand"])
def test_a_link_to_a_run_is_resolved_before_the_fit_can_move_it(tmp_path, link):
    run = tmp_path / "runs" / "x-1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").touch()
    (run.parent / "latest").symlink_to("x-1")
    (run.parent / "by-hand").symlink_to("latest")
    arguments, found = resumed_arguments(["--resume", str(run.parent / link)])
    assert found == run.resolve()
    assert not [each for each in arguments if link in each]


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "nowhere"]])
def test_no_run_to_resume(arguments):
    with pytest.raises(UsageError, match="--resume"):
        resumed_arguments(arguments)


def test_the_log_keeps_its_earlier_epochs(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,a\n0,1\n1,2\n")
    with keep_earlier_epochs(tmp_path):
        assert not log.exists()
        log.write_text("epoch,b\n2,5\n")
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "0", "a": "1", "b": ""},
        {"epoch": "1", "a": "2", "b": ""},
        {"epoch": "2", "a": "", "b": "5"},
    ]


def test_the_best_so_far_goes_along_into_a_new_folder(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "best.ckpt").write_text("best")
    copy_best(old, new)
    assert (new / "best.ckpt").read_text() == "best"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7), (None, None)]
)
def test_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "ten", "5 d", "-3s"])
def test_no_time(text):
    with pytest.raises(UsageError, match="10m"):
        parse_time(text)
