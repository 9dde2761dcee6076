"""Backbones as tasks of Ray, with a stand-in for Ray that sends what it is given by pickle."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import finetune
from finetune import extras
from finetune.cli import main
from finetune.combining.backbone_choice import BackboneChoice
from finetune.networks.factory import create_network

NAMES = ("test_resnet", "test_efficientnet")


class Sent:
    """What has been sent to a node."""

    def __init__(self, value: Any) -> None:
        self.content = pickle.dumps(value)


class Lost(Exception):
    """As Ray's own: the process of a task has gone too often."""


@pytest.fixture
def asked(install_ray: Callable[..., None]) -> dict[str, Any]:
    """What Ray was asked for; ``lost`` names a backbone whose process always goes."""
    asked: dict[str, Any] = {"tasks": []}

    def remote(**options: Any) -> Callable[..., Any]:
        asked.update(options)

        def task(function: Callable[..., Any]) -> Any:
            def run(data: Sent, question: Any) -> Any:
                asked["tasks"].append((question.candidate.backbone, question.images))
                if question.candidate.backbone == asked.get("lost"):
                    return Lost("The worker died.")
                return Sent(function(get(data), get(Sent(question))))

            return SimpleNamespace(remote=run)

        return task

    def get(promised: Any) -> Any:
        if isinstance(promised, Lost):
            raise promised
        return pickle.loads(promised.content)  # noqa: S301

    functions = {
        "init": lambda **options: asked.update(options),
        "shutdown": lambda: asked.update(ended=True),
        "nodes": lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}],
        "put": Sent,
        "remote": remote,
        "get": get,
        "exceptions": SimpleNamespace(RayError=Lost),
    }
    install_ray(functions)
    return asked


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    given = []
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        save_file(create_network(name, 5).state_dict(), tmp_path / f"{name}.safetensors")
        given.append(f"{name}={tmp_path / name}.safetensors")
    return {"backbones": given, "accelerator": "cpu", "quiet": True}


def choose(folder: Path, cache: str, **options: Any) -> BackboneChoice:
    found = finetune.choose(folder, cache_dir=cache, **options)
    assert isinstance(found, BackboneChoice)
    return found


def test_the_choice_is_that_of_one_process(
    colour_folder: Path, options: dict[str, Any], asked: dict[str, Any]
) -> None:
    here = choose(colour_folder, "here", **options)
    there = choose(colour_folder, "there", **options, engine="ray", address="cluster:6379")
    assert {name for name, _ in asked["tasks"]} == set(NAMES)
    assert asked["address"] == "cluster:6379"
    assert asked["ended"]
    assert asked["num_cpus"] == 4
    assert [each.name for each in here.trials] == [each.name for each in there.trials]
    for one, other in zip(here.trials, there.trials, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.labels, other.labels)
    assert there.together == here.together


def test_a_backbone_whose_process_goes_too_often_is_left_out(
    colour_folder: Path, options: dict[str, Any], asked: dict[str, Any], capsys
) -> None:
    asked["lost"] = NAMES[0]
    found = choose(colour_folder, "cache", **options | {"quiet": False}, engine="ray")
    assert [each.backbone for each in found.trials] == [NAMES[1]]
    assert "is left out: The worker died." in capsys.readouterr().out


def test_a_short_budget_judges_one_at_least(
    colour_folder: Path, options: dict[str, Any], asked: dict[str, Any]
) -> None:
    found = choose(colour_folder, "cache", **options, engine="ray", budget="0.001s")
    assert [each.backbone for each in found.trials] == [NAMES[0]]


def test_what_a_task_cannot_have_is_one_line(
    colour_folder: Path, options: dict[str, Any], asked: dict[str, Any]
) -> None:
    Path(options["backbones"][0].partition("=")[2]).unlink()
    with pytest.raises(finetune.FinetuneError, match=r"test_resnet\.safetensors"):
        choose(colour_folder, "cache", **options, engine="ray")


def test_wrong_calls_are_one_line(
    colour_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["choose", str(colour_folder), "--address=x:1"]) == 2
    is_there = extras._is_there
    monkeypatch.setattr(extras, "_is_there", lambda name: name != "ray" and is_there(name))
    assert main(["choose", str(colour_folder), "--engine=ray"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "--address beside --engine ray alone" in lines[0]
    assert extras.remedy("ray") in lines[1]
