from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import cli
from finetune.combining.ensemble import Ensemble
from finetune.prediction import predict

WriteCheckpoint = Callable[..., Path]


def test_a_whole_ensemble_needs_no_pictures(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path
) -> None:
    paths = [str(write_probe("w0")), str(write_probe("w1", backbone="test_efficientnet", size=48))]
    output = tmp_path / "ensemble.ckpt"
    call = ["ensemble", *paths, "--pooling", "geometric", "--coefficients", "3", "1"]
    assert cli.main([*call, "--output", str(output)]) == 0
    ensemble = Ensemble.from_file(output)
    assert ensemble.coefficients == (0.75, 0.25)
    files = sorted(colour_folder.rglob("*.png"))[:6]
    expected = Ensemble.from_checkpoints(paths, coefficients=[3, 1], pooling="geometric")
    assert torch.equal(
        predict(ensemble, files).probabilities, predict(expected, files).probabilities
    )


def test_selected_and_calibrated_in_one_go_then_predicted_with(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [str(write_probe(f"c{seed}", noise=2.0, seed=seed)) for seed in range(3)]
    output = tmp_path / "ensemble.ckpt"
    call = ["ensemble", *paths, "--select", "greedy", "--data.root", str(colour_folder)]
    call += ["--data.cache", "off", "--calibrate", "--conformal", "0.3", "--output", str(output)]
    assert cli.main(call) == 0
    shown = capsys.readouterr()
    assert shown.out.count("ms a picture") == 3
    assert "worse than the best member" not in shown.out
    assert "temperature" in shown.out
    assert "warning: Fitted a temperature on" in shown.err
    table = tmp_path / "answers.csv"
    pictures = str(colour_folder / "red")
    call = ["predict", str(output), pictures, "--output", str(table)]
    assert cli.main([*call, "--test-time-augmentation", "2"]) == 0
    header = table.read_text().splitlines()[0].split(",")
    assert "prediction_set" in header


def test_what_cannot_be_done_is_one_line(
    write_probe: WriteCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, new = str(write_probe("x0")), str(tmp_path / "new.ckpt")
    for call, code, message in [
        (["ensemble", path, "--select", "greedy", "--output", new], 2, "--data.root"),
        (["ensemble", path, "--calibrate", "--output", new], 2, "--data.root"),
        (["ensemble", path, "--coefficients", "1", "2", "--output", new], 2, "coefficient"),
        (["ensemble", str(tmp_path), "--output", new], 1, "best.ckpt"),
    ]:
        assert cli.main(call) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path(new).exists()
