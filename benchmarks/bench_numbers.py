"""A number an image: the head against predicting the mean, and how often intervals hold the truth.

    python benchmarks/bench_numbers.py DATA [--backbone tf_efficientnet_lite0] [--most 1000]

DATA holds photographs. Two numbers are made of them: the angle in degrees by which each was turned
(uniform from -45 to 45; a centre crop, so that no corner tells), and how bright it is (the mean of
its grey values, 0 to 255). A fit with the strategy ``head`` learns each from 60 % of the images;
half of the 20 % held out for val calibrate intervals that miss at most one number of ten, and the
20 % for test judge.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import finetune
from finetune.evaluation.intervals import wilson_interval

ENDINGS = {".jpg", ".jpeg", ".png"}
SIDE = 224
ALPHA = 0.1


def make(data: Path, folder: Path, most: int) -> int:
    """Write turned crops and a manifest for each number; how many images."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in ENDINGS)
    rows = []
    for index, file in enumerate(files[:: max(1, len(files) // most)]):
        angle = float(generator.uniform(-45, 45))
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (2 * SIDE, 2 * SIDE))
        turned = square.rotate(angle, Image.Resampling.BICUBIC)
        inner = turned.crop((SIDE // 2, SIDE // 2, SIDE // 2 * 3, SIDE // 2 * 3))
        inner.save(folder / "images" / f"{index:04}.png")
        rows.append((f"{index:04}.png", angle, float(np.asarray(inner.convert("L")).mean())))
    for column, name in enumerate(("angle", "brightness"), start=1):
        with (folder / f"{name}.csv").open("w", newline="") as file_of_numbers:
            writer = csv.writer(file_of_numbers)
            writer.writerow(("path", name))
            writer.writerows((row[0], row[column]) for row in rows)
    return len(rows)


def measured(folder: Path, name: str, backbone: str) -> str:
    """A row of the table: errors of the head and of the mean, R2, width and coverage."""
    images = folder / "images"
    run = finetune.fit(
        images,
        manifest=str(folder / f"{name}.csv"),
        task="regression",
        backbone=backbone,
        strategy="head",
        runs=str(folder / "runs"),
        quiet=True,
    )
    figures = run.test(quiet=True)
    model = finetune.calibrate(run.best, images, conformal=ALPHA, quiet=True)
    assert model.calibration is not None
    assert model.calibration.interval is not None
    width = model.calibration.interval.half_width
    with (run.folder / "split.csv").open(newline="") as file:
        sides = list(csv.DictReader(file))
    train = np.array([float(row[name]) for row in sides if row["split"] == "train"])
    test = [row for row in sides if row["split"] == "test"]
    truth = np.array([float(row[name]) for row in test])
    answers = run.predictor()([images / row["path"] for row in test]).logits[:, 0].numpy()
    held = int((np.abs(answers - truth) <= width).sum())
    low, high = wilson_interval(held, len(test))
    return (
        f"| {name} | {np.abs(truth - train.mean()).mean():.2f} | {figures['mae']:.2f} "
        f"({figures['mae_low']:.2f} to {figures['mae_high']:.2f}) | {figures['r2']:.3f} "
        f"({figures['r2_low']:.3f} to {figures['r2_high']:.3f}) | {width:.1f} | "
        f"{held / len(test):.3f} ({low:.3f} to {high:.3f}) |"
    )


def main() -> None:
    """Make the images, fit twice, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--most", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = make(arguments.data, Path(folder), arguments.most)
        print(f"{images} images")
        print("| number | MAE of the mean | MAE | R2 | half of the width | coverage |")
        for name in ("angle", "brightness"):
            print(measured(Path(folder), name, arguments.backbone), flush=True)


if __name__ == "__main__":
    main()
