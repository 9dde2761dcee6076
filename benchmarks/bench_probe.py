"""Seconds that the final layer takes in closed form, by classes and images, penalty chosen.

    OMP_NUM_THREADS=1 python benchmarks/bench_probe.py
    python benchmarks/bench_probe.py --classes 1000 --images 5000

Features are made up after those of ``tf_efficientnet_lite0``: 1,280, correlated (their spectrum is
that of flowers12), not negative, half of them zero, with unequal spreads. Every cell runs in a
process of its own, for its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.training.linear_probe import fit_probe

WIDTH = 1280
LATENT = 300  # directions in which images differ
NOISE = 2.5  # of images about their class, against the classes' own differences


def features_like_a_backbones(
    classes: int, images: int, *, seed: int = 0, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """``(images, width)`` and their labels, as equal in number as can be."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spectrum = torch.arange(1, LATENT + 1) ** -0.5
    centres, mixing = normal(classes, LATENT), normal(LATENT, width) / 2
    offsets, scales = normal(width) * 0.7 - 0.5, 10 ** (normal(width) * 0.3 - 0.5)
    labels = torch.arange(images) % classes
    latent = (centres[labels] + NOISE * normal(images, LATENT)) * spectrum
    activations = latent @ mixing + 0.5 * normal(images, width) + offsets
    return activations.clamp_(0, 6).mul_(scales), labels


def measure(classes: int, images: int, say: bool) -> dict[str, float]:
    """One fit, judged on 2,000 further images."""
    features, labels = features_like_a_backbones(classes, images + 2000)
    started, processor = time.perf_counter(), time.process_time()
    probe = fit_probe(features[:images], labels[:images], classes, say=_to_stderr if say else None)
    seconds = time.perf_counter() - started
    logits = probe.logits(features[images:])
    return {
        "seconds": seconds,
        "processor": time.process_time() - processor,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "l2": probe.l2,
        "accuracy": float((logits.argmax(1) == labels[images:]).double().mean()),
        "nll": float(cross_entropy(logits, labels[images:])),
    }


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure every cell and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100, 500, 1500, 5000, 15000, 50000]
    )
    parser.add_argument("--most", type=float, default=5e6, help="images times classes of a cell")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--say", action="store_true", help="show the progress lines")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.classes[0], options.images[0], options.say)))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| classes | images | seconds | of processors | peak MB | penalty | accuracy | NLL |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for classes in options.classes:
        for images in options.images:
            if images < 3 * classes or images * classes > options.most:
                continue
            cell = ["--classes", str(classes), "--images", str(images), "--cell"]
            command = [sys.executable, __file__, *cell, *(["--say"] if options.say else [])]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(
                f"| {classes} | {images} | {found['seconds']:.1f} | {found['processor']:.1f} | "
                f"{found['megabytes']:.0f} | {found['l2']:.3g} | {found['accuracy']:.3f} | "
                f"{found['nll']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
