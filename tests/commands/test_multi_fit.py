import json
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.commands.config_files import read_settings
from finetune.networks import defaults
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier

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


def test_where_no_backbone_is_named_one_is_found_once_and_recorded(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, asked = defaults.default_backbone, list[object]()
    monkeypatch.setattr(defaults, "ON_CPU", "test_resnet")
    monkeypatch.setattr(
        defaults, "default_backbone", lambda *a, **k: (asked.append(a), rule(*a, **k))[1]
    )
    assert main(["fit", f"--data.root={colour_folder}", *SMALL[1:], "--seeds=2"]) == 0
    assert len(asked) == 1  # the hub may answer one member and not the other
    for seed in range(2):
        run = Path(f"runs/test_resnet-1/seed-{seed}-1")
        assert read_settings(str(run / "config.yaml"))["model"]["backbone"] == "test_resnet"
    assert read_checkpoint(run / "checkpoints/best.ckpt").hyper_parameters["backbone"] != "auto"
    monkeypatch.setattr(defaults, "ON_ACCELERATOR", "test_resnet")
    classifier = ImageClassifier(("a", "b"), pretrained=False, image_size=32)
    assert classifier.hparams["backbone"] == classifier.backbone == "test_resnet"


def test_folds_validate_on_different_images(colour_folder: Path) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, "--folds", "3", "--name=f"]) == 0
    seen: list[str] = []
    for fold in range(3):
        best = read_checkpoint(Path(f"runs/f-1/fold-{fold}-1/checkpoints/best.ckpt"))
        seen += best.details["val"]["paths"]
    assert len(seen) == len(set(seen)) == 36, "every image is held out once"


def test_an_ensemble_of_folds_is_judged_by_what_each_did_not_see(
    colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", f"--data.root={colour_folder}", *SMALL, "--folds=3", "--name=f"]
    assert main(arguments) == 0
    right = 0
    for fold in range(3):
        val = read_checkpoint(Path(f"runs/f-1/fold-{fold}-1/checkpoints/best.ckpt")).details["val"]
        right += int((val["logits"].argmax(-1) == val["labels"]).sum())
    call = ["--data.root", str(colour_folder), "--data.cache", "off", "--output"]
    capsys.readouterr()
    assert main(["ensemble", "runs/f-1", *call, str(tmp_path / "all.ckpt")]) == 0
    shown = capsys.readouterr().out
    assert "runs/f-1 (3 folds)" in shown
    assert f"accuracy of the ensemble {right / 36:.4f} (95 % interval" in shown
    assert "36 out-of-fold answers" in shown
    # The file knows its folds: another verb judges it by them as well.
    saved = str(tmp_path / "all.ckpt")
    assert main(["validate", "--ckpt_path", saved, *call[:4], "--runs", str(tmp_path)]) == 0
    assert f"val: accuracy {right / 36:.3f}" in capsys.readouterr().out
    assert main(["calibrate", saved, *call, str(tmp_path / "calibrated.ckpt")]) == 0
    assert "answered by a fit without it" in capsys.readouterr().out
    # An average of folds has been trained on every image.
    assert main(["average", "runs/f-1", "--output", str(tmp_path / "soup.ckpt")]) == 0
    soup = [str(tmp_path / "soup.ckpt"), *call, str(tmp_path / "refused.ckpt")]
    assert main(["calibrate", *soup]) == 1
    assert "a fit has trained on all others" in capsys.readouterr().err
    # Folds stand in a comparison as one.
    assert main([*arguments[:-1], "--name=g"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs/f-1", "runs/g-1"]) == 0
    assert "on the 36 images that all have in common" in capsys.readouterr().out


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
    assert main(["fit", "--resume", "runs/group-1", "--model.lr=0.1"]) == 2
    assert "--model.lr beside --resume" in capsys.readouterr().err
    assert main(["fit", "--resume", "runs/group-1"]) == 0
    assert torch.equal(weights(Path("runs/group-1/seed-1-1")), before)
    assert Path("runs/group-1/seed-0-1/metrics.json").is_file()


def test_groups_without_members_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, message in [('{"members": {"seed-0": []}}', "--resume"), ("{", "no JSON")]:
        (tmp_path / "members.json").write_text(content)
        assert main(["ensemble", str(tmp_path), "--output", str(tmp_path / "new.ckpt")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("options", [["--seeds=1"], ["--seeds", "x"], ["--seeds=2", "--folds=2"]])
def test_wrong_numbers_are_refused(colour_folder: Path, options: list[str]) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, *options]) == 2


def test_members_run_at_the_same_time_where_there_are_several_accelerators(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", f"--data.root={colour_folder}", *SMALL, "--seeds=2"]
    assert main([*arguments, "--name=after"]) == 0
    # There is no second accelerator here: both places are the processor.
    monkeypatch.setattr(
        "finetune.commands.multi_fit.device_options", lambda _: [["--trainer.devices=1"]] * 2
    )
    capsys.readouterr()
    assert main([*arguments, "--name=beside"]) == 0
    assert "seed-0: val: accuracy" in (shown := capsys.readouterr().out)
    assert "seed-1: val: accuracy" in shown
    for name in ("seed-0-1", "seed-1-1"):
        after, beside = (weights(Path(f"runs/{group}-1/{name}")) for group in ("after", "beside"))
        assert torch.equal(after, beside)
    assert main([*arguments, "--model.focal_gamma=-1", "--name=wrong"]) != 0
