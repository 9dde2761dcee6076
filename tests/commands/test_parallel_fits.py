import threading
from pathlib import Path

import pytest
import torch

from finetune.commands.parallel_fits import device_options, fit_in_a_process, run_side_by_side


def test_as_many_jobs_run_at_once_as_there_are_places() -> None:
    together = threading.Barrier(2, timeout=60)  # broken if the jobs follow each other
    busy: set[str] = set()

    def job(place: str) -> str:
        assert place not in busy, "two jobs on one place"
        busy.add(place)
        together.wait()
        busy.remove(place)
        return place

    outcomes = run_side_by_side(dict.fromkeys("abcd", job), ["first", "second"])
    assert list(outcomes) == list("abcd")
    assert sorted(outcomes.values()) == ["first", "first", "second", "second"]


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (0, [], [[]]),
        (1, [], [[]]),
        (2, [], [["--trainer.devices=[0]"], ["--trainer.devices=[1]"]]),
        (2, ["--trainer.accelerator=cpu"], [[]]),
        (2, ["--trainer.devices=2"], [[]]),
    ],
)
def test_each_accelerator_is_a_place_unless_the_settings_say_which(
    count: int,
    options: list[str],
    expected: list[list[str]],
    colour_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    small = ["--model.backbone=test_resnet", "--model.pretrained=false"]
    assert device_options([f"--data.root={colour_folder}", *small, *options]) == expected


def test_a_member_that_fails_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    problem = fit_in_a_process("seed-0", ["--data.root", "nowhere"])
    assert problem is not None
    assert problem.startswith("Expected a folder")
    assert "seed-0: finetune: Expected a folder" in capsys.readouterr().out
