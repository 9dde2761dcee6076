import json
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.training.checkpoints import read_checkpoint

SMALL = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--data.cache=off",
    "--data.test_fraction=0",
)


def weights(run: Path) -> torch.Tensor:
    return read_checkpoint(run / "checkpoints" / "best.ckpt").state_dict["network.fc.weight"]


def test_seeds_share_the_split_and_differ_in_their_weights(colour_folder: Path, capsys) -> None:
    arguments = ["fit", f"--data.root={colour_folder}", *SMALL, "--seeds=2", "--name=group"]
    assert main(arguments) == 0
    first, second = Path("runs/group-1/seed-0-1"), Path("runs/group-1/seed-1-1")
    assert (first / "split.csv").read_bytes() == (second / "split.csv").read_bytes()
    assert not torch.equal(weights(first), weights(second))
    assert "2 of 2 members" in capsys.readouterr().out


def test_folds_validate_on_different_images(colour_folder: Path) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, "--folds", "3", "--name=f"]) == 0
    seen: list[str] = []
    for fold in range(3):
        best = read_checkpoint(Path(f"runs/f-1/fold-{fold}-1/checkpoints/best.ckpt"))
        seen += best.details["val"]["paths"]
    assert len(seen) == len(set(seen)) == 36, "every image is held out once"


def test_a_failed_member_stops_no_other_and_is_made_up_for(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from finetune.commands import fit
    from finetune.errors import TrainingError

    whole = fit.main
    fail = True

    def sometimes(arguments: list[str]) -> int:
        if fail and "--seed_everything=0" in arguments and "--seeds=2" not in arguments:
            raise TrainingError("Expected a finite loss, found nan; lower --model.lr.")
        return whole(arguments)

    monkeypatch.setattr(fit, "main", sometimes)
    arguments = ["fit", f"--data.root={colour_folder}", *SMALL, "--seeds=2", "--name=group"]
    assert main(arguments) == 1
    assert not Path("runs/group-1/seed-0-1").exists()
    assert json.loads(Path("runs/group-1/seed-1-1/metrics.json").read_text())["val"]
    assert "finetune fit --resume runs/group-1" in capsys.readouterr().out
    before = weights(Path("runs/group-1/seed-1-1"))
    fail = False
    assert main(["fit", "--resume", "runs/group-1"]) == 0
    assert torch.equal(weights(Path("runs/group-1/seed-1-1")), before)
    assert Path("runs/group-1/seed-0-1/metrics.json").is_file()


@pytest.mark.parametrize("options", [["--seeds=1"], ["--seeds", "x"], ["--seeds=2", "--folds=2"]])
def test_wrong_numbers_are_refused(colour_folder: Path, options: list[str]) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, *options]) == 2
