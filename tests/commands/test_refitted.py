"""What has learnt from all labelled images picks and calibrates by out-of-fold answers alone."""

import json
import os
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.commands.held_out_images import build_held_out
from finetune.commands.joined_backbones import fitted_joint
from finetune.data.datamodule import ImageFolderDataModule
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoints import read_checkpoint

SMALL = ("--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32")
CPU = ("--trainer.accelerator=cpu",)
CACHE = ("--data.cache=off",)


@pytest.fixture(scope="module")
def fits(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The checkpoints of two refitted final layers of different networks, and of a plain one."""
    place, here = tmp_path_factory.mktemp("refitted"), Path.cwd()
    os.chdir(place)
    try:
        call = ["fit", f"--data.root={colour_folder}", *SMALL, *CPU, *CACHE, "--model.views=1"]
        call += ["--model.strategy=head", "--data.augmentation=none"]
        assert main([*call, "--name=one"]) == 0
        assert main([*call, "--name=two", "--seed_everything=1"]) == 0
        assert main([*call, "--name=plain", "--seed_everything=2", "--model.refit=false"]) == 0
    finally:
        os.chdir(here)
    return tuple(
        place / "runs" / f"{name}-1" / "checkpoints" / "best.ckpt"
        for name in ("one", "two", "plain")
    )


def ids_on(path: Path, side: str) -> set[str]:
    record = SplitRecord.from_entry(read_checkpoint(path).details)
    pairs = zip(record.images, record.standings, strict=True)
    return {image.id for image, at in pairs if at.side == side}


def kept_answers(path: Path) -> dict[str, torch.Tensor]:
    val = read_checkpoint(path).details["val"]
    return dict(zip(val["ids"], val["logits"], strict=True))


def test_the_figures_of_a_fit_are_out_of_fold_and_validate_repeats_them(
    fits: tuple[Path, ...], colour_folder: Path
) -> None:
    best, plain = fits[0], fits[2]
    metrics = best.parents[1] / "metrics.json"
    said = json.loads(metrics.read_text(encoding="utf-8"))["val"]
    assert said["answers"] == "out of fold"
    assert ids_on(best, "val") == set()
    assert set(kept_answers(best)) == ids_on(best, "train")
    assert ids_on(best, "test") == ids_on(plain, "test")
    assert ids_on(plain, "val")
    call = [f"--ckpt_path={best}", f"--data.root={colour_folder}", *CPU, *CACHE]
    assert main(["validate", *call]) == 0
    again = json.loads(metrics.read_text(encoding="utf-8"))["val"]
    assert again["nll"] == pytest.approx(said["nll"])
    assert main(["test", *call]) == 0


def test_members_answer_what_has_trained_them_out_of_fold_in_any_file(
    fits: tuple[Path, ...], colour_folder: Path, tmp_path: Path
) -> None:
    one, two, _ = fits
    ensemble = Ensemble.from_checkpoints([one, two])
    ensemble.save(tmp_path / "both.ckpt")
    Ensemble.from_checkpoints([tmp_path / "both.ckpt"]).save(tmp_path / "nested.ckpt")
    for members in (ensemble, Ensemble.from_file(tmp_path / "both.ckpt")):
        data = build_held_out(colour_folder, {"cache": "off"}, members)
        held_out = members.held_out(data)
        assert held_out.is_out_of_fold
        assert set(held_out.ids) == ids_on(one, "train")
        for row, path in zip(held_out.member_logits, (one, two), strict=True):
            kept = kept_answers(path)
            assert torch.equal(row, torch.stack([kept[image] for image in held_out.ids]))
        test = members.held_out(data, "test")
        assert not test.is_out_of_fold
        assert set(test.ids) == ids_on(one, "test")
    nested = Ensemble.from_file(tmp_path / "nested.ckpt")
    answers = nested.held_out(build_held_out(colour_folder, {"cache": "off"}, nested))
    pooled = ensemble.pool(held_out.member_logits).float()
    torch.testing.assert_close(answers.member_logits[0], pooled)


def test_beside_a_plain_fit_the_images_that_this_one_held_out_judge(
    fits: tuple[Path, ...], colour_folder: Path
) -> None:
    one, _, plain = fits
    members = Ensemble.from_checkpoints([one, plain])
    held_out = members.held_out(build_held_out(colour_folder, {"cache": "off"}, members))
    assert set(held_out.ids) == ids_on(plain, "val")
    kept = kept_answers(one)
    expected = torch.stack([kept[image] for image in held_out.ids])
    assert torch.equal(held_out.member_logits[0], expected)


@pytest.mark.filterwarnings("ignore:Fitted a temperature on")
def test_it_picks_and_calibrates_and_says_so(
    fits: tuple[Path, ...],
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [str(path) for path in fits[:2]]
    data = [f"--data.root={colour_folder}", *CACHE]
    output = tmp_path / "out.ckpt"
    call = ["ensemble", *files, "--select=greedy", "--calibrate", *data, f"--output={output}"]
    assert main(call) == 0
    shown = capsys.readouterr().out
    assert "out-of-fold answers" in shown
    assert "answered by a fit without it" in shown
    made = Ensemble.from_file(output)
    assert made.calibration is not None
    assert made.calibration.out_of_fold
    pick, calibrate = (set(made.roles[role]) for role in ("pick", "calibrate"))
    assert not pick & calibrate
    assert pick | calibrate == ids_on(fits[0], "train")
    alone = [f"--output={tmp_path / 'one.ckpt'}", "--conformal=0.3", "--unknown=0.3"]
    assert main(["calibrate", files[0], *data, *alone]) == 0
    assert "usual, not proven" in capsys.readouterr().out
    heads = ["--heads=3", "--select=greedy", f"--output={tmp_path / 'heads.ckpt'}"]
    assert main(["ensemble", files[0], *data, *heads]) == 0
    assert "out-of-fold answers" in capsys.readouterr().out


@pytest.mark.parametrize(("which", "side"), [((0, 1), "train"), ((0, 2), "val")])
def test_a_joint_final_layer_learns_what_they_all_learnt_and_answers_it_out_of_fold(
    fits: tuple[Path, ...],
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    which: tuple[int, int],
    side: str,
) -> None:
    """Beside a plain fit it learns as that did, and images that this one held out judge it."""
    files = [fits[number] for number in which]
    members = Ensemble.from_checkpoints(files)
    data = build_held_out(colour_folder, {"cache": "off"}, members)
    assert isinstance(data, ImageFolderDataModule)
    classifiers = [part for part in members.parts if isinstance(part, ClassifierMember)]
    joint = fitted_joint(classifiers, data, members.class_names, None, 0)
    joint.save(tmp_path / "joint.ckpt")
    again = Ensemble.from_file(tmp_path / "joint.ckpt")
    (seen,) = joint.preprocessings
    loader = data.evaluation_dataloader("val", preprocessings=[seen])
    live = joint.member_logits({seen: torch.cat([batches[0] for batches, _ in loader])})
    for each in (joint, again):
        judging = build_held_out(colour_folder, {"cache": "off"}, each)
        held_out = each.held_out(judging)
        assert set(held_out.ids) == ids_on(files[1], side)
        assert held_out.is_out_of_fold is (side == "train")
        assert torch.equal(held_out.member_logits, live) is (side == "val")
        # Each part says of what it has learnt what the sum says, without its fold.
        first, second = held_out.member_logits
        assert torch.equal(first, second) is (side == "train")
    call = ["ensemble", *map(str, files), "--joint", f"--data.root={colour_folder}", *CACHE]
    assert main([*call, f"--output={tmp_path / 'taken.ckpt'}"]) == 0
    assert "one final layer on all features" in capsys.readouterr().out


def test_what_needs_held_out_images_of_the_network_itself_is_refused(
    fits: tuple[Path, ...],
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, data = [str(path) for path in fits[:2]], [f"--data.root={colour_folder}", *CACHE]
    out = f"--output={tmp_path / 'out.ckpt'}"
    assert main(["average", *files, "--method=greedy", *data, out]) == 2
    assert "--model.refit false" in capsys.readouterr().err
    folds = ["--data.folds=3", "--data.fold=0", "--model.refit=true", "--model.strategy=head"]
    assert main(["fit", *data, *SMALL, *CPU, *folds]) == 2
    assert "--data.fold" in capsys.readouterr().err
