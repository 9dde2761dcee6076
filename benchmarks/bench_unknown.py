"""Strangers: classes that are left out, told from the known ones; and how often a known is refused.

    python benchmarks/bench_unknown.py DATA... [--splits 20] [--fine-tuned 3 --epochs 3]
    python benchmarks/bench_unknown.py DATA --left-out 0 --strangers FOLDER

DATA holds a folder of images a class, perhaps below train, val and test, which are put together.
In each split a few classes are strangers; of the others 60 % train, 20 % calibrate and 20 % test.
Prints the rate of false alarms at --alpha and the AUROC of each score, means over the splits with
95 % intervals (Student's t; splits share images), and differences to maximum probability, paired.
--strangers brings images of another folder, beside or in place of classes that are left out.
--fine-tuned N fine-tunes the backbone on the first N splits and compares with frozen: the network
of the last epoch, whatever the fit would deliver (perhaps the frozen one, or a point between).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

import finetune
from finetune import ImageClassifier
from finetune.combining.strangeness import SCORES
from finetune.combining.unknown import fit_unknown
from finetune.evaluation.separation import separation
from finetune.prediction.feature_space import features_of
from finetune.training.features.store import FeatureStore

ENDINGS = {".jpg", ".jpeg", ".png"}
Figures = dict[str, list[float]]


class Sides(NamedTuple):
    """Rows of images; ``labels`` are of all images, from 0 among the known classes."""

    train: Tensor
    calibrate: Tensor
    test: Tensor
    strange: Tensor
    labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--left-out", type=int, default=3)
    parser.add_argument("--strangers", type=Path)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--fine-tuned", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    for root in options.data:
        paths, labels, names = images_of(root)
        if options.strangers is not None:
            others = images_of(options.strangers)[0]
            paths, labels = paths + others, torch.cat([labels, torch.full((len(others),), -1)])
        frozen = ImageClassifier(names, backbone=options.backbone).eval()
        features = torch.from_numpy(features_of(frozen, paths, store=FeatureStore()).values)
        found: Figures = defaultdict(list)
        for seed in range(options.splits):
            sides = deal(labels, options.left_out, seed)
            for name, value in judged(features, sides, options.alpha).items():
                found[name].append(value)
        show(f"{root.name}, frozen, {options.splits} splits", found)
        both: Figures = defaultdict(list)
        for seed in range(options.fine_tuned):
            sides = deal(labels, options.left_out, seed)
            tuned = fine_tuned(paths, sides, options.backbone, options.epochs)
            before = judged(features, sides, options.alpha)
            after = judged(torch.from_numpy(features_of(tuned, paths).values), sides, options.alpha)
            for name, value in after.items():
                both[name].append(value)
                both[f"{name}, minus frozen"].append(value - before[name])
            print(seed, {name: round(values[-1], 4) for name, values in both.items()}, flush=True)
        if both:
            show(f"{root.name}, fine-tuned, {options.fine_tuned} splits", both)


def images_of(root: Path) -> tuple[list[str], Tensor, list[str]]:
    """All images, their labels, and the classes' names: the folders in which the images lie."""
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS)
    names = sorted({path.parent.name for path in found})
    labels = torch.tensor([names.index(path.parent.name) for path in found])
    return [str(path) for path in found], labels, names


def deal(labels: Tensor, left_out: int, seed: int) -> Sides:
    """Strangers, also those of no class (-1), and the known on three sides, class by class."""
    generator = np.random.default_rng(seed)
    classes = generator.permutation(int(labels.max()) + 1)
    sides: list[list[int]] = [[], [], []]
    for name in classes[left_out:]:
        rows = generator.permutation(np.flatnonzero(labels.numpy() == name))
        ends = round(0.6 * len(rows)), round(0.8 * len(rows))
        for side, part in zip(sides, np.split(rows, ends), strict=True):
            side.extend(part.tolist())
    strange = np.flatnonzero(np.isin(labels.numpy(), [-1, *classes[:left_out]]))
    position = torch.full((len(classes),), -1)
    position[torch.from_numpy(np.sort(classes[left_out:]))] = torch.arange(len(classes) - left_out)
    train, calibrate, test = map(torch.tensor, sides)
    return Sides(train, calibrate, test, torch.from_numpy(strange), position[labels])


def judged(features: Tensor, sides: Sides, alpha: float) -> dict[str, float]:
    """False alarms, strangers that are caught, and the AUROC of each score."""
    train, labels = features[sides.train], sides.labels[sides.train]
    known, strange = features[sides.test], features[sides.strange]
    rule = fit_unknown(train, labels, features[sides.calibrate], alpha=alpha)
    figures = {
        **{f"chosen: {name}": float(rule.familiar.score == name) for name in SCORES},
        "false alarms": float((rule.strangeness(known) > 1).double().mean()),
        "strangers caught": float((rule.strangeness(strange) > 1).double().mean()),
    }
    areas = {}
    for name, fit in SCORES.items():
        familiar = rule.familiar if rule.familiar.score == name else fit(train, labels)
        distances = (familiar.distances(rows).numpy() for rows in (strange, known))
        areas[name] = separation(*distances).auroc
    figures["AUROC, doubt (maximum probability)"] = areas["doubt"]
    scored = {"the chosen score": areas[rule.familiar.score], **areas}
    for name in ("the chosen score", "mahalanobis", "neighbours"):
        figures[f"AUROC, {name}"] = scored[name]
        figures[f"AUROC, {name}, minus maximum probability"] = scored[name] - areas["doubt"]
    return figures


def fine_tuned(paths: list[str], sides: Sides, backbone: str, epochs: int) -> ImageClassifier:
    """The backbone after the last epoch of fine-tuning all of it on the training images."""
    with tempfile.TemporaryDirectory() as folder:
        for side, rows in (("train", sides.train), ("val", sides.calibrate)):
            for row in rows.tolist():
                place = Path(folder, "images", side, str(int(sides.labels[row])))
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{row}{Path(paths[row]).suffix}").write_bytes(
                    Path(paths[row]).read_bytes()
                )
        run = finetune.fit(
            Path(folder, "images"),
            backbone=backbone,
            max_epochs=epochs,
            strategy="head-then-all",
            runs=Path(folder, "runs"),
            quiet=True,
        )
        return ImageClassifier.from_checkpoint(run.folder / "checkpoints" / "last.ckpt")


def show(title: str, found: Figures) -> None:
    print(f"\n| {title} | mean [95 % interval] |\n| --- | --- |")
    for name, values in found.items():
        mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
        half = t.ppf(0.975, len(values) - 1) * error
        print(f"| {name} | {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] |", flush=True)


if __name__ == "__main__":
    main()
