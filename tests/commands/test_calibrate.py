from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import cli
from finetune.combining.ensemble import Ensemble
from finetune.combining.strangeness import Familiar
from finetune.combining.unknown import UnknownRule
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import CalibrationError, CheckpointMismatchError
from finetune.prediction import predict
from finetune.prediction.predictor import load_model
from finetune.tables.reading import read_table
from finetune.training.checkpoints import read_checkpoint, read_content, write_checkpoint
from finetune.training.classifier import ImageClassifier

WriteCheckpoint = Callable[..., Path]


def test_a_calibrated_classifier_stays_a_checkpoint_and_answers_calibrated(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_probe("c", noise=1.0), tmp_path / "calibrated.ckpt"
    call = ["calibrate", str(path), "--data.root", str(colour_folder), "--data.cache", "off"]
    call += ["--reject-risk", "0.5", "--conformal", "0.3", "--score", "aps"]
    assert cli.main([*call, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "temperature" in shown
    assert "reject below" in shown
    assert "at least 70%" in shown
    details = read_checkpoint(output).details
    assert details["data"]["val_fraction"] == 0.4
    assert len(details["roles"]["calibrate"]) == details["calibration"]["fit"]["images"] == 7
    before = predict(ImageClassifier.from_checkpoint(path), colour_folder)
    after = predict(load_model(output), colour_folder)
    assert after.labels == before.labels
    temperature = details["calibration"]["fit"]["temperature"]
    expected = (before.probabilities.double().log() / temperature).softmax(-1).float()
    torch.testing.assert_close(after.probabilities, expected)
    assert before.rejected is None
    assert after.rejected is not None
    assert after.prediction_sets is not None
    assert [row["rejected"] for row in after.rows()] == [
        str(value).lower() for value in after.rejected.tolist()
    ]


def test_sets_by_images_that_chose_the_fit_are_told_so(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def calibrated(path: Path, name: str, *options: str) -> tuple[bool, bool]:
        """Whether the file and the output say that these images chose the fit."""
        output = tmp_path / f"{name}.ckpt"
        call = ["calibrate", str(path), "--data.root", str(colour_folder), "--data.cache", "off"]
        assert cli.main([*call, "--conformal", "0.3", *options, "--output", str(output)]) == 0
        kept = Ensemble.from_file(output).calibration
        assert kept is not None
        return kept.chosen_by, "--split test" in capsys.readouterr().out

    tuned = write_probe("tuned", noise=1.0)
    assert calibrated(tuned, "val") == (True, True)
    assert calibrated(tuned, "test", "--split", "test", "--share", "all") == (False, False)
    content = read_content(tuned)
    head = tmp_path / "head.ckpt"
    write_checkpoint(
        head,
        state_dict=content["state_dict"],
        hyper_parameters={**content["hyper_parameters"], "strategy": "head"},
        entry=content["finetune"],
    )
    assert calibrated(head, "closed form") == (False, False)
    judge = ["test", "--ckpt_path", str(tmp_path / "test.ckpt"), "--data.root", str(colour_folder)]
    assert cli.main([*judge, "--data.cache", "off"]) == 1
    assert "helped to calibrate" in capsys.readouterr().err


def test_an_ensemble_stays_an_ensemble_and_its_split_is_remembered(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path
) -> None:
    Ensemble.from_checkpoints([write_probe("m0"), write_probe("m1", noise=1.0)]).save(
        tmp_path / "ensemble.ckpt"
    )
    call = ["calibrate", str(tmp_path / "ensemble.ckpt"), "--data.root", str(colour_folder)]
    assert cli.main([*call, "--data.cache", "off", "--output", str(tmp_path / "out.ckpt")]) == 0
    calibrated = Ensemble.from_file(tmp_path / "out.ckpt")
    assert len(calibrated.parts) == 2
    assert calibrated.calibration is not None
    assert calibrated.calibration.fit.images == 7  # half of the fits' 15 val images


def test_images_are_needed_and_reuse_is_refused(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = str(write_probe("r")), str(tmp_path / "out.ckpt")
    assert cli.main(["calibrate", path, "--output", output]) == 2
    assert "--data.root" in capsys.readouterr().err
    data = ["--data.root", str(colour_folder), "--data.cache", "off"]
    picked = str(tmp_path / "picked.ckpt")
    call = ["ensemble", path, "--select", "greedy", "--share", "all", *data, "--output", picked]
    assert cli.main(call) == 0
    assert cli.main(["calibrate", picked, *data, "--output", output]) == 1
    assert "helped to pick" in capsys.readouterr().err
    assert cli.main(["calibrate", picked, *data, "--allow-reuse", "--output", output]) == 0
    assert "flatter" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["classifier", "ensemble"])
def test_strangers_are_called_unknown_by_a_file_of_either_kind(
    kind: str,
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_probe("u", noise=1.0), tmp_path / "sure.ckpt"
    if kind == "ensemble":
        Ensemble.from_checkpoints([path, write_probe("v", noise=1.0, seed=1)]).save(
            tmp_path / "e.ckpt"
        )
        path = tmp_path / "e.ckpt"
    call = ["calibrate", str(path), "--data.root", str(colour_folder), "--data.cache", "off"]
    noise = tmp_path / "strangers"
    noise.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(noise / f"{number}.png")
    call += ["--share", "all", "--output", str(output), "--unknown-examples", str(noise)]
    assert cli.main(call) == 2
    assert "Expected --unknown beside --unknown-examples" in capsys.readouterr().err
    assert cli.main([*call, "--unknown", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "unknown by the" in shown
    assert "at most 20% of known images" in shown
    assert "6 of 6 examples of something else are called unknown: 100% [61%, 100%]" in shown
    model = load_model(output)
    known, strange = predict(model, colour_folder), predict(model, noise)
    assert known.unknown is not None
    assert strange.unknown is not None
    assert known.unknown.double().mean() <= 0.4
    assert strange.unknown.all()
    again = predict(model, colour_folder, batch_size=3, test_time_augmentation=2)
    torch.testing.assert_close(again.strangeness, known.strangeness, rtol=1e-3, atol=1e-3)
    rows = list(strange.rows())
    assert {row["unknown"] for row in rows} == {"true"}
    assert all(row["strangeness"] > 1 for row in rows)
    for ending in ("csv", "parquet", "jsonl"):
        table = tmp_path / f"answers.{ending}"
        assert cli.main(["predict", str(output), str(noise), "--output", str(table)]) == 0
        read = read_table(table)
        assert len(read.paths) == 6
    assert '"unknown": "true"' in table.read_text(encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["predict", str(output), str(noise)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("  unknown\n") == 6
    assert "6 of 6 images are unknown" in shown.err
    assert "more than chance: they are other images" in shown.err


@pytest.mark.filterwarnings("ignore:Fitted a temperature on")
def test_a_rule_for_unknown_images_that_cannot_be_is_one_line(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_probe("u", noise=1.0)
    call = ["calibrate", str(path), "--data.root", str(colour_folder), "--data.cache", "off"]
    call += ["--output", str(tmp_path / "out.ckpt")]
    assert cli.main([*call, "--unknown", "0.01"]) == 1
    assert "at least 99 images" in capsys.readouterr().err
    assert cli.main([*call, "--unknown", "1.5"]) == 2
    assert not (tmp_path / "out.ckpt").exists()
    table = tmp_path / "table.csv"
    predict(load_model(path), colour_folder).to_csv(table)
    Ensemble.from_checkpoints([table]).save(tmp_path / "t.ckpt")
    odd = Ensemble.from_file(tmp_path / "t.ckpt")
    nothing = torch.zeros(1, 4)
    odd.unknown = UnknownRule(
        Familiar("neighbours", nothing, nothing[:0], torch.zeros(1)), 0.1, 1.0, 9, (0.5, 0.4, 0.6)
    )
    with pytest.raises(CheckpointMismatchError, match="--unknown"):
        predict(odd, colour_folder)
    with pytest.raises(CalibrationError, match="saved predictions"):
        Ensemble.from_file(tmp_path / "t.ckpt").calibrate(
            ImageFolderDataModule(colour_folder, num_workers=0, cache="off"), unknown=0.5
        )
