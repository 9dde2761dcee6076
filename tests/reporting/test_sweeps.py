"""Sweep files, turned into commands by wandb's own functions, then run."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from finetune.cli import main
from finetune.tasks.multiclass import MULTICLASS

PROJECT = Path(__file__).parents[2]
SWEEPS = sorted((PROJECT / "configs" / "sweeps").glob("*.yaml"))
TINY = [
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--data.num_workers=0",
    "--data.cache=off",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.logger.init_args.offline=true",
]


def drawn(parameter: dict[str, Any]) -> Any:
    """One value that the sweep could draw."""
    return parameter["values"][0] if "values" in parameter else parameter["min"]


def command_of(sweep: dict[str, Any]) -> list[str]:
    values = {name: {"value": drawn(spec)} for name, spec in sweep["parameters"].items()}
    arguments = create_sweep_command_args({"args": values})["args"]
    return [
        part
        for chunk in create_sweep_command(list(sweep["command"]))
        for part in (arguments if chunk == "${args}" else [chunk])
    ]


def test_there_are_sweeps() -> None:
    assert len(SWEEPS) >= 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_runs_the_console_command(
    path: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert sweep["method"] in {"bayes", "grid", "random"}
    logged = [f"val/{name}" for name in MULTICLASS.figure_names(3)]
    assert sweep["metric"]["name"] in {*logged, "val/nll", "val/loss"}
    assert sweep["metric"]["goal"] in {"minimize", "maximize"}
    assert all("values" in p or "min" in p for p in sweep["parameters"].values())
    monkeypatch.setenv("DATA", str(colour_folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    program, *arguments = command_of(sweep)
    assert program == "finetune"
    monkeypatch.chdir(PROJECT)
    assert main([*arguments, *TINY, f"--runs={tmp_path / 'runs'}"]) == 0
    (run,) = (tmp_path / "runs").glob("*-1")
    assert (run / "checkpoints" / "best.ckpt").is_file()
