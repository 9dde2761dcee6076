"""Reading images: this project's path against ImageFolder with timm's transforms.

    python benchmarks/bench_data.py [--images 24] [--rounds 5] [--files 200000]

Single process, one thread, medians of interleaved rounds, so that ratios hold on a busy machine
too. Images are made from scikit-image's photographs; nothing of the user is read.

Goals: 12-megapixel JPEGs, first epoch: 3x the images a second; 512x384 JPEGs, later epochs: 5x;
a first epoch that fills the cache: at most 1.15x the time of one that does not; 200,000 files
found in 3 s and 200 MB.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader

from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.sample import _photographs_folder
from finetune.spec.preprocessing import Preprocessing

PHOTOGRAPHS = ("coffee.png", "chelsea.png", "astronaut.png", "rocket.jpg", "ihc.png", "retina.jpg")
CROP = Preprocessing(interpolation="bilinear")

Epoch = Callable[[], Iterable[object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=24, help="large ones; 8 times more small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=200_000, help="hard links to find")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as scratch:
        # Of small images there are more, so that an epoch lasts long enough to be timed.
        for size, times in (((4000, 3000), 1), ((512, 384), 8)):
            root = write_images(Path(scratch) / f"{size[0]}", size, times * options.images)
            compare(root, size, options.rounds, Path(scratch) / "cache")
        find_files(Path(scratch) / "many", options.files)


def write_images(root: Path, size: tuple[int, int], count: int) -> Path:
    """``count`` different JPEG files of one size in two classes."""
    for number in range(count):
        with Image.open(_photographs_folder() / PHOTOGRAPHS[number % len(PHOTOGRAPHS)]) as image:
            turned = image.convert("RGB").rotate(7 * number).resize(size, Image.Resampling.BICUBIC)
        path = root / f"class_{number % 2}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned.save(path, quality=90)
    return root


def compare(root: Path, size: tuple[int, int], rounds: int, cache: Path) -> None:
    """Print images a second of each way to read the folder, and the ratios that matter."""
    count = sum(1 for _ in root.rglob("*.jpg"))
    rates: dict[str, float] = {}
    for training in (True, False):
        label = "random crops" if training else "evaluation"
        times = interleaved(ways(root, training, cache), rounds)
        print(f"\n{size[0]} x {size[1]} JPEG, {label}, {count} images, images a second")
        for name, seconds in times.items():
            rates[name] = count / statistics.median(seconds)
            print(f"  {name:<36} {rates[name]:8.1f}")
        peer = rates["ImageFolder + timm"]
        fill = rates["first epoch"] / rates["first epoch, filling the cache"]
        print(f"  first epoch: {rates['first epoch'] / peer:.1f}x the peer")
        print(f"  later epochs (disk): {rates['later epochs, disk'] / peer:.1f}x the peer")
        print(f"  later epochs (memory): {rates['later epochs, memory'] / peer:.1f}x the peer")
        print(f"  filling the cache: {fill:.2f}x the time of not filling it")


def ways(root: Path, training: bool, cache: Path) -> dict[str, Epoch]:
    """The peer and this project's states, each as a function that starts one epoch."""
    transform = timm.data.create_transform(
        224,
        is_training=training,
        scale=(0.35, 1.0),
        auto_augment=None,
        color_jitter=None,
        interpolation="bilinear",
    )
    peer = torchvision.datasets.ImageFolder(root, transform)
    warm = {mode: own(root, training, mode, cache / "warm") for mode in ("disk", "memory")}
    for loader in warm.values():
        list(loader)

    def filling() -> Iterable[object]:
        shutil.rmtree(cache / "cold", ignore_errors=True)
        return own(root, training, "disk", cache / "cold")

    return {
        "ImageFolder + timm": lambda: DataLoader(peer, batch_size=8, shuffle=training),
        "first epoch": lambda: own(root, training, "off", cache),
        "first epoch, filling the cache": filling,
        "later epochs, disk": lambda: warm["disk"],
        "later epochs, memory": lambda: warm["memory"],
    }


def own(root: Path, training: bool, mode: str, cache: Path) -> DataLoader[object]:
    """This project's loader of all images; they are checked before the clock starts."""
    module = ImageFolderDataModule(
        root,
        preprocessing=CROP,
        val_fraction=0,
        test_fraction=0,
        num_workers=0,
        batch_size=8,
        cache=mode,  # type: ignore[arg-type]
        cache_dir=cache,
    )
    return module.train_dataloader() if training else module.evaluation_dataloader("train")


def interleaved(epochs: dict[str, Epoch], rounds: int) -> dict[str, list[float]]:
    """Seconds of each epoch in each round; one of each a round, so that noise falls on all."""
    times: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, start in epochs.items():
            loader = start()
            begin = time.perf_counter()
            for _batch in loader:
                pass
            times[name].append(time.perf_counter() - begin)
    return times


def find_files(root: Path, count: int) -> None:
    """Time and memory of finding hard links to one image, in a process of its own."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG")
    for number in range(count):
        folder = root / "images" / f"class_{number // 2000:03d}"
        source = root / f"source_{number // 50_000}.jpg"  # file systems limit the links to a file
        if number % 50_000 == 0:
            root.mkdir(exist_ok=True)
            source.write_bytes(content.getvalue())
        if number % 2000 == 0:
            folder.mkdir(parents=True)
        os.link(source, folder / f"image_{number % 2000:05d}.jpg")
    code = (
        "import re, sys, time; from finetune.data.folder import scan_folder\n"
        "begin = time.perf_counter(); found = len(scan_folder(sys.argv[1]).images)\n"
        "seconds = time.perf_counter() - begin\n"
        # Not getrusage's figure: that one starts with the size of the process that forked.
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "print(f'\\n{found:,} files found in {seconds:.2f} s, {peak:.0f} MB at most')"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, str(root / "images")], check=True)


if __name__ == "__main__":
    main()
