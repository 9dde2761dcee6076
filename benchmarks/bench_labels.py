"""Several labels an image against fastai: mean average precision, with one backbone and weights.

    sh benchmarks/peers/make_venv.sh .venv/bin/python build/peers
    python benchmarks/bench_labels.py --data FLOWERS12 [--weights FILE] [--peers PYTHON]

``FLOWERS12`` holds ``train/<species>/`` and ``test/<species>/``. An image has its species and the
group of its colour as labels. All train on ``train``; what ours chooses by, it holds out of that.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_training import image_number, weights_file

COLOURS = {
    "yellow": ("buttercup", "colts-foot", "dandelion", "sunflower"),
    "white": ("daisy", "lily-valley", "windflower"),
    "blue": ("bluebell", "iris", "pansy"),
    "red": ("fritillary", "tigerlily"),
}
COLOUR_OF = {name: colour for colour, names in COLOURS.items() for name in names}
PEER = Path(__file__).parent / "peers" / "fastai_labels.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="default: those of the package for lite0")
    parser.add_argument("--peers", default="build/peers/bin/python")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 4], help="of fine_tune")
    parser.add_argument("--strategies", nargs="+", default=["head", "auto"], help="of ours")
    options = parser.parse_args()
    data = options.data.resolve()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        weights, classes = weights_file(options, folder)
        manifest = write_manifest(data, folder)
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


def write_manifest(data: Path, folder: Path) -> Path:
    """Species and colour of each image; every fifth of a species in ``train`` as val."""
    path = folder / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for side in ("train", "test"):
            for image in sorted(data.glob(f"{side}/*/*")):
                species = image.parent.name
                inner = "val" if image_number(image) % 5 == 0 else "train"
                label = f"{species}|{COLOUR_OF[species]}"
                writer.writerow(
                    [image.relative_to(data), label, inner if side == "train" else side]
                )
    return path


def ours(
    data: Path, manifest: Path, backbone: str, weights: Path, strategy: str, folder: Path
) -> tuple[float, float]:
    """Mean average precision on test, and seconds of fit and test together."""
    runs = folder / f"runs-{strategy}"
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
