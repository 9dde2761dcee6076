"""``fit --backbones A,B``: a final layer on each, and what answers best together."""

from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from finetune.cli import main
from finetune.combining.ensemble import Ensemble
from finetune.training.checkpoints import read_checkpoint

COMMON = ("--model.image_size=32", "--trainer.accelerator=cpu", "--data.augmentation=none")
NAMES = ("test_resnet", "test_efficientnet")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two, each with a file of weights."""
    folder = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return ",".join(f"{name}={folder / name}.safetensors" for name in NAMES)


def test_final_layers_on_each_become_one_file_and_a_resumed_group_too(
    backbones: str, colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.root={colour_folder}", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main(["fit", *data, *COMMON, f"--model.backbones={backbones}"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 members" in shown
    assert shown.count("  <- taken") == 1
    assert "the best member alone" in shown
    group = Path("runs/backbones-1")
    for name in NAMES:
        kept = read_checkpoint(group / f"{name}-1" / "checkpoints" / "best.ckpt")
        assert kept.network.architecture == name
        assert kept.hyper_parameters["strategy"] == "head"
    together = Ensemble.from_file(group / "ensemble.ckpt")
    assert together.roles["pick"]
    assert main(["test", f"--ckpt_path={group / 'ensemble.ckpt'}", data[0]]) == 0
    (group / "ensemble.ckpt").unlink()
    assert main(["fit", f"--resume={group}"]) == 0
    assert (group / "ensemble.ckpt").is_file()


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (["--seeds=2"], "found two"),
        (["--model.backbone=resnet18"], "--model.backbone resnet18"),
        (["--model.strategy=all"], "--model.strategy all"),
        (["--model.pretrained=false"], "NAME=FILE"),
    ],
)
def test_what_contradicts_it_is_refused(
    backbones: str,
    colour_folder: Path,
    capsys: pytest.CaptureFixture[str],
    beside: list[str],
    words: str,
) -> None:
    call = ["fit", f"--data.root={colour_folder}", *COMMON, *beside]
    assert main([*call, f"--backbones={backbones}"]) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [("test_resnet", 2, "two backbones"), ("resnet1,test_vit", 1, "resnet18")],
)
def test_one_or_an_unknown_one_is_refused(
    colour_folder: Path, capsys: pytest.CaptureFixture[str], names: str, code: int, words: str
) -> None:
    assert main(["fit", f"--data.root={colour_folder}", f"--backbones={names}"]) == code
    assert words in capsys.readouterr().err
