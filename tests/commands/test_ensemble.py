import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune import cli
from finetune.combining.ensemble import Ensemble
from finetune.commands import joined_backbones
from finetune.prediction import predict
from finetune.training.linear_probe import Probe

WriteCheckpoint = Callable[..., Path]


def test_a_whole_ensemble_needs_no_images(
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
    assert shown.out.count("ms an image") == 3
    assert "worse than the best member" not in shown.out
    assert "temperature" in shown.out
    assert "warning: Fitted a temperature on" in shown.err
    assert "cross-validated accuracy of the ensemble" in shown.out
    assert cli.main(["report", str(output)]) != 0
    assert "finetune test --ckpt_path" in capsys.readouterr().err
    table = tmp_path / "answers.csv"
    images = str(colour_folder / "red")
    call = ["predict", str(output), images, "--output", str(table)]
    assert cli.main([*call, "--test-time-augmentation", "2"]) == 0
    header = table.read_text().splitlines()[0].split(",")
    assert "prediction_set" in header


@pytest.mark.parametrize(
    ("pooling", "metric", "worth"), [("geometric", "nll", "nll"), ("vote", "accuracy", "accuracy")]
)
def test_members_are_chosen_and_shown_as_they_are_pooled(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pooling: str,
    metric: str,
    worth: str,
) -> None:
    paths = [str(write_probe(f"p{seed}", noise=2.0, seed=seed)) for seed in range(3)]
    output = tmp_path / "ensemble.ckpt"
    call = ["ensemble", *paths, "--select", "greedy", "--data.root", str(colour_folder)]
    call += ["--data.cache", "off", "--pooling", pooling, "--metric", metric]
    assert cli.main([*call, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "worse than the best member" not in shown
    judged = rf"the best member by held-out {worth} \([+-][0-9.]+\) on [1-9][0-9]* images"
    assert re.search(judged, shown)
    [row] = re.findall(r"^ensemble +(accuracy .*)$", shown, re.MULTILINE)
    assert ("nll" in row) == (worth == "nll")
    assert Ensemble.from_file(output).pooling == pooling


def test_many_heads_share_the_backbone_of_one_fit_and_its_file(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path
) -> None:
    path, output = write_probe("h0"), tmp_path / "heads.ckpt"
    call = ["ensemble", str(path), "--heads", "5", "--data.root", str(colour_folder)]
    assert cli.main([*call, "--data.cache", "off", "--output", str(output)]) == 0
    ensemble = Ensemble.from_file(output)
    assert len(ensemble.parts) == 5
    assert output.stat().st_size < 2 * path.stat().st_size
    weights = [member.classifier.network.get_classifier().weight for member in ensemble.parts]
    assert not torch.equal(weights[0], weights[1])
    images = sorted(colour_folder.rglob("*.png"))
    found = predict(ensemble, images)
    right = [label == path.parent.name for label, path in zip(found.labels, images, strict=True)]
    assert sum(right) >= 0.9 * len(right)


def test_the_members_differences_are_drawn(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path
) -> None:
    paths = [str(write_probe(f"d{seed}", noise=3.0, seed=seed)) for seed in range(3)]
    output, figure = tmp_path / "ensemble.ckpt", tmp_path / "diversity.png"
    call = ["ensemble", *paths, "--data.root", str(colour_folder), "--data.cache", "off"]
    assert cli.main([*call, "--figure", str(figure), "--output", str(output)]) == 0
    with Image.open(figure) as drawn:
        assert min(drawn.size) > 200


def test_what_cannot_be_done_is_one_line(
    write_probe: WriteCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, new = str(write_probe("x0")), str(tmp_path / "new.ckpt")
    for call, code, message in [
        (["ensemble", path, "--select", "greedy", "--output", new], 2, "--data.root"),
        (["ensemble", path, "--calibrate", "--output", new], 2, "--data.root"),
        (["ensemble", path, "--heads", "3", "--output", new], 2, "--data.root"),
        (["ensemble", path, "--figure", "f.png", "--output", new], 2, "--data.root"),
        (["ensemble", path, "--coefficients", "1", "2", "--output", new], 2, "coefficient"),
        (["ensemble", str(tmp_path), "--output", new], 1, "best.ckpt"),
    ]:
        assert cli.main(call) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path(new).exists()


def test_a_joint_final_layer_is_taken_where_it_is_best_and_only_there(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Backbones that are alright, with final layers that are not.
    paths = [
        str(write_probe("j0", noise=3.0)),
        str(write_probe("j1", backbone="test_efficientnet", size=48, noise=3.0)),
    ]
    output = tmp_path / "joint.ckpt"
    call = ["ensemble", *paths, "--joint", "--data.root", str(colour_folder)]
    call += ["--data.cache", "off", "--calibrate", "--output", str(output)]
    assert cli.main(call) == 0
    shown = capsys.readouterr().out
    (taken,) = re.findall(r"  (.*?)\s+(\d\.\d+)  <- taken", shown)
    assert taken[0] == "one final layer on all features"
    assert float(taken[1]) == min(map(float, re.findall(r"  \S.* (\d\.\d{4})(?:  <-|\n)", shown)))
    joint = Ensemble.from_file(output)
    assert joint.pooling == "geometric"
    assert joint.roles["pick"]
    assert not set(joint.roles["pick"]) & set(joint.roles["calibrate"])
    nothing = [Probe(torch.zeros(3, width), torch.zeros(3), 1.0) for width in (96, 256)]
    monkeypatch.setattr(joined_backbones, "fit_joint_probe", lambda *a, **k: nothing)
    assert cli.main([*call, "--overwrite"]) == 0
    assert "one final layer on all features 1.0986\n" in capsys.readouterr().out
    assert Ensemble.from_file(output).pooling == "mean"


@pytest.mark.parametrize(
    "beside", [["--select", "greedy"], ["--heads", "2"], ["--pooling", "vote"]]
)
def test_joint_decides_alone(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path, beside: list[str]
) -> None:
    call = ["ensemble", str(write_probe("j0", noise=3.0)), "--joint", "--output", "joint.ckpt"]
    assert cli.main([*call, "--data.root", str(colour_folder), *beside]) == 2
    assert cli.main([*call, "--data.root", str(colour_folder)]) == 2  # one member
    assert cli.main(call) == 2  # no images
