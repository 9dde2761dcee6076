"""Members of a group as tasks of Ray, with a stand-in for Ray that loses the process of a task."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune import extras
from finetune.cli import main
from finetune.commands import fit, multi_fit
from finetune.training.checkpoints import read_checkpoint

SMALL = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.strategy=all"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--data.cache=off"]


class Gone(BaseException):
    """The node of a task has gone."""


class Task:
    """Runs where it is called, and again where its node has gone."""

    def __init__(self, function: Callable[..., Any], retries: int) -> None:
        self.function, self.retries = function, retries

    def options(self, *, name: str) -> "Task":
        return self

    def remote(self, *given: Any) -> Any:
        for _ in range(self.retries + 1):
            try:
                return self.function(*given)
            except Gone:
                continue
        return RuntimeError("The node has gone too often.")


@pytest.fixture
def asked(install_ray: Callable[..., None]) -> dict[str, Any]:
    """What Ray was asked for."""
    asked: dict[str, Any] = {}

    def remote(*, max_calls: int, max_retries: int, **of_each: float) -> Callable[..., Task]:
        asked.update(max_calls=max_calls, **of_each)
        return lambda function: Task(function, max_retries)

    def get(promised: Any) -> Any:
        if isinstance(promised, Exception):
            raise promised
        return promised

    functions = {
        "init": lambda **options: asked.update(options),
        "shutdown": lambda: asked.update(ended=True),
        "nodes": lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}],
        "remote": remote,
        "get": get,
        "exceptions": SimpleNamespace(RayError=RuntimeError),
    }
    install_ray(functions)
    return asked


@pytest.fixture
def call(colour_folder: Path) -> list[str]:
    return ["fit", f"--data.root={colour_folder}", *SMALL]


def members(group: str) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]]:
    """The weights and the figures of each member of a group."""
    found = {}
    for run in sorted(Path(group).glob("*-[0-9]")):
        figures = json.loads((run / "metrics.json").read_text())["val"]
        found[run.name] = (read_checkpoint(run / "checkpoints/best.ckpt").state_dict, figures)
    return found


def test_members_are_those_of_fits_here_though_a_node_goes(
    call: list[str], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*call, "--seeds=2", "--name=here"]) == 0
    fit_main, calls = fit.main, []

    def lost_once(arguments: list[str]) -> int:
        calls.append(arguments)
        result = fit_main(arguments)
        if len(calls) == 1:
            # Its last epoch is written, its end is not.
            path = Path("runs/there-1/seed-0-1/metrics.json")
            kept = json.loads(path.read_text())
            kept["fit"]["finished"] = False
            path.write_text(json.dumps(kept))
            raise Gone
        return result

    there = [*call, "--seeds=2", "--name=there", "--engine=ray", "--address=cluster:6379"]
    monkeypatch.setattr(multi_fit, "_fit_here", lambda _, given: lost_once([*given]) or None)
    assert main(there) == 0
    assert [each for each in calls[1] if each.startswith("--resume=")]
    assert asked["address"] == "cluster:6379"
    assert asked["max_calls"] == 1
    assert "num_gpus" not in asked
    assert asked["ended"]
    here, there_too = members("runs/here-1"), members("runs/there-1")
    assert here.keys() == there_too.keys() == {"seed-0-1", "seed-1-1"}
    for name, (weights, figures) in here.items():
        for key, value in weights.items():
            assert torch.equal(value, there_too[name][0][key]), (name, key)
        assert figures == there_too[name][1]


def test_a_member_whose_node_goes_too_often_is_named_and_can_be_resumed(
    call: list[str], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    fit_here = multi_fit._fit_here

    def always_gone(name: str, arguments: list[str]) -> str | None:
        if name == "fold-0":
            raise Gone
        return fit_here(name, arguments)

    monkeypatch.setattr(multi_fit, "_fit_here", always_gone)
    assert main([*call, "--folds=2", "--name=there", "--engine=ray"]) == 1
    assert "fold-0 failed: The node has gone too often." in capsys.readouterr().err
    monkeypatch.setattr(multi_fit, "_fit_here", fit_here)
    assert main(["fit", "--resume=runs/there-1", "--engine=ray"]) == 0
    out = capsys.readouterr().out
    assert "fold-1: there already" in out
    assert "2 of 2 members" in out


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    is_there = extras._is_there
    monkeypatch.setattr(extras, "_is_there", lambda name: name != "ray" and is_there(name))


@pytest.mark.usefixtures("no_ray")
def test_wrong_calls_are_told_before_the_extra_is_missed(call: list[str], capsys) -> None:
    assert main([*call, "--engine=ray"]) == 2
    assert main([*call, "--seeds=2", "--engine=spark"]) == 2
    assert main([*call, "--seeds=2", "--address=x:1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "add --seeds N or --folds N" in lines[0]
    assert not Path("runs").exists()


@pytest.mark.usefixtures("no_ray")
def test_without_the_extra_it_says_how_to_get_it(call: list[str], capsys) -> None:
    assert main([*call, "--seeds=2", "--engine=ray"]) == 1
    assert extras.remedy("ray") in capsys.readouterr().err
    assert not Path("runs").exists()
