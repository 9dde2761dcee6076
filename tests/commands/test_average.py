from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import cli
from finetune.combining.averaging import average_state_dicts
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier

WriteCheckpoint = Callable[..., Path]


def test_average_without_images(
    write_probe: WriteCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_probe(f"a{seed}", noise=0.1, seed=seed) for seed in range(2)]
    output = tmp_path / "soup.ckpt"
    assert cli.main(["average", *map(str, paths), "--output", str(output)]) == 0
    expected = average_state_dicts([read_checkpoint(path).state_dict for path in paths])
    for name, tensor in ImageClassifier.from_checkpoint(output).state_dict().items():
        assert torch.equal(tensor, expected[name])
    shown = capsys.readouterr().out
    assert shown.count("coefficient 0.500") == 2
    assert "written to" in shown


def test_greedy_says_what_it_brought(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [write_probe(f"g{seed}", noise=1.5, seed=seed) for seed in range(3)]
    call = ["average", *map(str, paths), "--method", "greedy", "--data.root", str(colour_folder)]
    assert cli.main([*call, "--data.cache", "off", "--output", str(tmp_path / "soup.ckpt")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("nll") == 5  # members, average, verdict
    assert "than the best member" in shown or "equal to the best member" in shown
    assert "worse" not in shown
    details = read_checkpoint(tmp_path / "soup.ckpt").details
    assert details["data"]["val_fraction"] == 0.4
    assert len(details["val"]["labels"]) == 15  # the fits' own split: 5 of each 12


def test_interpolation_shows_its_curve(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [write_probe(f"i{seed}", noise=seed, seed=seed) for seed in range(2)]
    call = ["average", *map(str, paths), "--method", "interpolate", "--data.cache", "off"]
    call += ["--data.root", str(colour_folder), "--output", str(tmp_path / "line.ckpt")]
    assert cli.main(call) == 0
    assert capsys.readouterr().out.count("at 0.") == 10


def test_what_cannot_be_done_is_one_line(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(write_probe("e0"))
    other = str(write_probe("e1", backbone="test_efficientnet", size=32))
    twin = str(write_probe("e2"))
    existing = tmp_path / "there.ckpt"
    existing.write_text("mine")
    new = str(tmp_path / "new.ckpt")
    for call, code, message in [
        (["average", path, other, "--output", new], 1, "finetune ensemble"),
        (["average", path, twin, "--output", str(existing)], 2, "--overwrite"),
        (["average", path, "--output", str(tmp_path / "no" / "x.ckpt")], 2, "create it"),
        (["average", path, "--method", "greedy", "--output", new], 2, "held-out"),
        (["average", str(tmp_path / "none.ckpt"), "--output", new], 1, "no file"),
        (["average", path, "--metod", "greedy", "--output", new], 2, "did you mean --method"),
    ]:
        assert cli.main(call) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert existing.read_text() == "mine"
    assert not Path(new).exists()


def test_fits_with_different_splits_are_not_judged_together(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [str(write_probe("s0")), str(write_probe("s1", val_fraction=0.3))]
    call = ["average", *paths, "--data.root", str(colour_folder), "--method", "greedy"]
    assert cli.main([*call, "--output", str(tmp_path / "soup.ckpt")]) == 2
    assert "data.val_fraction = 0.4 and 0.3" in capsys.readouterr().err
