"""Several labels an image against fastai: mean average precision, with one backbone and weights.

    sh benchmarks/peers/make_venv.sh .venv/bin/python build/peers
    python benchmarks/bench_labels.py [--data FLOWERS12] [--weights FILE] [--peers PYTHON]

``FLOWERS12``, if given, holds ``train/<species>/`` and ``test/<species>/``; an image has its
species and the group of its colour as labels. The other set is the embedded sample, whose
photographs have their attributes as labels; of ``text`` four images train. All train on the same
images; what ours chooses by, it holds out of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench_training import image_number, weights_file

from finetune.data.sample import write_sample

COLOURS = {
    "yellow": ("buttercup", "colts-foot", "dandelion", "sunflower"),
    "white": ("daisy", "lily-valley", "windflower"),
    "blue": ("bluebell", "iris", "pansy"),
    "red": ("fritillary", "tigerlily"),
}
COLOUR_OF = {name: colour for colour, names in COLOURS.items() for name in names}
ATTRIBUTES = {
    "brick": "made|stone|surface",
    "tissue": "natural|small",
    "clock": "made|round",
    "coffee": "food|made|round",
    "coins": "made|metal|round|small",
    "fur": "animal|natural",
    "grass": "natural|surface",
    "gravel": "natural|stone|surface",
    "moon": "natural|round|sky|stone",
    "motorcycle": "made|metal",
    "page": "made|text",
    "stars": "natural|sky",
}
RARE, KEPT = "page", 4  # of its training images
PEER = Path(__file__).parent / "peers" / "fastai_labels.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="flowers12; default: the sample alone")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="default: those of the package for lite0")
    parser.add_argument("--peers", default="build/peers/bin/python")
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 4], help="of fine_tune")
    parser.add_argument("--strategies", nargs="*", default=["head", "auto"], help="of ours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        weights, classes = weights_file(options, folder)
        sample = folder / "sample"
        write_sample(sample)
        flowers = {} if options.data is None else {options.data.resolve(): flower_rows}
        sets = {**flowers, sample: sample_rows}
        for data, rows in sets.items():
            manifest = write_manifest(folder / f"{data.name}.csv", rows(data))
            print(f"{data.name}, {options.backbone}\n{'':<24}{'mAP':>8}{'seconds':>10}", flush=True)
            for strategy in options.strategies:
                found = ours(data, manifest, options.backbone, weights, strategy, folder)
                print(f"{f'finetune {strategy}':<24}{found[0]:>8.4f}{found[1]:>10.1f}", flush=True)
            for epochs in options.epochs:
                command = [options.peers, PEER, data, manifest, options.backbone, weights, classes]
                done = subprocess.run(
                    [*map(str, command), str(epochs)], check=True, capture_output=True, text=True
                )
                peer = json.loads(done.stdout.strip().splitlines()[-1])
                name = f"fastai fine_tune({epochs})"
                print(f"{name:<24}{peer['map']:>8.4f}{peer['process']:>10.1f}", flush=True)


def flower_rows(data: Path) -> Iterator[Sequence[str]]:
    """Species and colour of each image; every fifth of a species in ``train`` as val."""
    for side in ("train", "test"):
        for image in sorted(data.glob(f"{side}/*/*")):
            species = image.parent.name
            inner = "val" if image_number(image) % 5 == 0 else "train"
            label = f"{species}|{COLOUR_OF[species]}"
            yield str(image.relative_to(data)), label, inner if side == "train" else side


def sample_rows(data: Path) -> Iterator[Sequence[str]]:
    """What each photograph has, on the side of its crop; few of the rare one train."""
    for side in ("train", "val", "test"):
        for folder in sorted((data / side).iterdir()):
            few = folder.name == RARE and side == "train"
            for image in sorted(folder.iterdir())[: KEPT if few else None]:
                yield str(image.relative_to(data)), ATTRIBUTES[folder.name], side


def write_manifest(path: Path, rows: Iterable[Sequence[str]]) -> Path:
    """The rows as ``path,label,split``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return path


def ours(
    data: Path, manifest: Path, backbone: str, weights: Path, strategy: str, folder: Path
) -> tuple[float, float]:
    """Mean average precision on test, and seconds of fit and test together."""
    runs = folder / f"runs-{data.name}-{strategy}"
    images = ["--data.root", data, "--data.manifest", manifest]
    network = ["--model.backbone", backbone, "--model.pretrained", weights]
    fit = ["fit", *images, *network, "--model.strategy", strategy, "--runs", runs, "--name", "x"]
    run = runs / "x-1"
    test = ["test", "--ckpt_path", run / "checkpoints" / "best.ckpt", *images]
    started = time.perf_counter()
    for arguments in (fit, test):
        command = [sys.executable, "-m", "finetune", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    return json.loads((run / "metrics.json").read_text())["test"]["map"], seconds


if __name__ == "__main__":
    main()
