import csv
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import Ensemble, cli
from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.exporting.description import _input
from finetune.exporting.safetensors_folder import read_safetensors
from finetune.spec.preprocessing import LongSide, Preprocessing

WriteCheckpoint = Callable[..., Path]
GUIDE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Larger and smaller than the images of networks, high and wide, grey, turned."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    paths = []
    for index, size in enumerate([(120, 90), (61, 200), (24, 30), (50, 50), (70, 131)]):
        colour = np.array([(40, 60, 200), (40, 180, 60), (200, 50, 40)][index % 3])
        coarse = np.clip(colour + generator.normal(0, 25, (6, 6, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if index == 0:
            exif[0x0112] = 6
        image = image.convert("L") if index == 3 else image
        paths.append(folder / f"{index}.png")
        image.save(paths[-1], exif=exif)
    return paths


def guides_program() -> str:
    (program,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
        if "onnxruntime" in block
    ]
    return program


@pytest.mark.parametrize("size", [(97, 141), (180, 101), (90, 64), (40, 23), (64, 64)])
@pytest.mark.parametrize("long_side", ["truncated", "rounded"])
def test_the_guides_program_sees_the_pixels_that_the_network_sees(
    size: tuple[int, int], long_side: LongSide, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    preprocessing = Preprocessing(image_size=56, crop_fraction=0.875, long_side=long_side)
    pixels = ImageReader.of([preprocessing])(tmp_path / "noise.png")
    ours = evaluation_transform(preprocessing)(pixels).numpy()
    names: dict[str, Any] = {}
    exec(guides_program().partition("session =")[0], names)  # the published text, not a user's
    theirs = names["prepared"](tmp_path / "noise.png", _input("images", preprocessing))[0] * 255
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(32,), (48, 32)])
def test_the_guides_program_answers_as_predict_does(
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    photographs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sizes: tuple[int, ...],
) -> None:
    checkpoint = calibrated(write_probe, colour_folder, tmp_path, sizes)
    model, answers = tmp_path / "model.onnx", tmp_path / "answers.csv"
    assert cli.main(["export", str(checkpoint), "--output", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "greatest difference" in shown
    assert shown.count("input") == len(sizes)
    images = [str(path) for path in (*photographs, colour_folder / "red" / "00.png")]
    assert cli.main(["predict", str(checkpoint), *images, "--output", str(answers)]) == 0
    capsys.readouterr()
    (tmp_path / "this.py").write_text(guides_program())
    monkeypatch.setattr(sys, "argv", ["this.py", str(model), *images])
    runpy.run_path(str(tmp_path / "this.py"))
    lines = capsys.readouterr().out.splitlines()
    with answers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["prediction"] for row in rows}) > 1
    for line, row in zip(lines, rows, strict=True):
        path, label, confidence = re.fullmatch(r"(.*)  (\S+) ([\d.]+)", line).groups()
        assert (path, label) == (row["path"], row["prediction"])
        assert float(confidence) == pytest.approx(float(row["confidence"]), abs=0.005)


def calibrated(
    write_probe: WriteCheckpoint, root: Path, folder: Path, sizes: tuple[int, ...]
) -> Path:
    """A checkpoint of one size, or an ensemble's file, with a temperature of its own."""
    source = write_probe("guide-0", size=sizes[0])
    if len(sizes) > 1:
        others = [write_probe(f"guide-{size}", size=size) for size in sizes[1:]]
        paths = [source, *others]
        source = folder / "ensemble.ckpt"
        Ensemble.from_checkpoints(paths).save(source)
    target = folder / "calibrated.ckpt"
    call = ["calibrate", str(source), "--data.root", str(root), "--data.cache", "off"]
    assert cli.main([*call, "--share", "all", "--output", str(target)]) == 0
    return target


def test_a_folder_and_what_is_refused(
    write_probe: WriteCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_probe("e-export"))
    folder, model = str(tmp_path / "folder"), str(tmp_path / "model.onnx")
    first = ["export", path, "--format", "safetensors", "--output", folder]
    assert cli.main(first) == 0
    shown = capsys.readouterr().out
    assert f"exported to {folder}" in shown
    assert "greatest difference to the checkpoint's probabilities on random images: 0\n" in shown
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["class_names"] == ["blue", "green", "red"]
    weights = tmp_path / "folder" / "model.safetensors"
    assert weights.stat().st_mode == (tmp_path / "folder" / "config.json").stat().st_mode
    ensemble = tmp_path / "ensemble.ckpt"
    Ensemble.from_checkpoints([path, path]).save(ensemble)
    for call, code, message in [
        (first, 2, "--overwrite"),
        (["export", path, "--output", folder, "--overwrite"], 2, "end in .onnx"),
        (["export", path, "--output", str(tmp_path / "no" / "m.onnx")], 2, "create it"),
        (["export", path, "--output", model, "--format", "onxn"], 2, "--format to be one of"),
        (["export", str(tmp_path / "none.ckpt"), "--output", model], 1, "no file"),
        (["export", path, "--ouptut", model], 2, "--output"),
        (["export", str(ensemble), "--format", "timm", "--output", model], 1, "one classifier"),
    ]:
        assert cli.main(call) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path(model).exists()
    again = ["export", str(ensemble), "--format", "safetensors", "--output", folder]
    assert cli.main([*again, "--overwrite"]) == 0
    (view,) = read_safetensors(folder).preprocessings
    images = {view: torch.rand(2, 3, 32, 32)}
    expected = Ensemble.from_file(ensemble).member_probabilities(images)
    assert torch.equal(read_safetensors(folder).member_probabilities(images), expected)
