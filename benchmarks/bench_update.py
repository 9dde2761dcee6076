"""A folder that has grown: ``fit --update`` against the same recipe begun again on the same split.

    python benchmarks/bench_update.py DATA... [--repeats 3] [--before 0.5] [--strategy head]

DATA holds a folder of images a class, perhaps below train and test, which are put together. A fit
on a part of the images, then the rest is added, with one class that the part lacked. The update and
a fit from the published weights, by the recipe that the first fit chose and on the sides
that the update dealt, are judged on the same test images. The update finds in the cache what the
first fit left there; the fit from scratch has a cache of its own, which is empty. Prints the
accuracy and seconds of both (on the clock, and of processors), how far their weights are apart, and
what the update says of the old test images. Strategies by gradient steps (--strategy auto) take
three fine-tunings each time: hours on a processor.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import finetune

ENDINGS = {".jpg", ".jpeg", ".png"}
OPTIONS = {"backbone": "tf_efficientnet_lite0", "accelerator": "cpu", "quiet": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=float, default=0.5)
    parser.add_argument("--strategy", default="head")
    options = parser.parse_args()
    for root in options.data:
        files = sorted(p.absolute() for p in root.rglob("*") if p.suffix.lower() in ENDINGS)
        rows = []
        for seed in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                rows.append(updated_and_anew(files, seed, options.before, options.strategy))
            print(seed, rows[-1], flush=True)
        print(f"\n| {root.name}, {options.repeats} repeats | mean | least | most |")
        print("| --- | --- | --- | --- |")
        for name in rows[0]:
            values = [row[name] for row in rows]
            figures = " | ".join(f"{each:.4g}" for each in (np.mean(values), *minmax(values)))
            print(f"| {name} | {figures} |", flush=True)


def minmax(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def updated_and_anew(
    files: list[Path], seed: int, before: float, strategy: str
) -> dict[str, float]:
    """Both fits' figures on the same test images; images are linked below the working folder."""
    generator = np.random.default_rng(seed)
    names = sorted({path.parent.name for path in files})
    late = names[int(generator.integers(len(names)))]
    order = generator.permutation(len(files))
    early = [i for i in order[: round(before * len(order))] if files[i].parent.name != late]
    link([files[i] for i in early])
    settings = {**OPTIONS, "strategy": strategy, "seed": seed, "split_seed": seed}
    first = finetune.fit("images", cache_dir="kept", **settings)
    link(files)
    update, update_seconds = timed(lambda: finetune.fit(update=first.folder, quiet=True))
    again = {"config": first.folder / "config.yaml", "manifest": update.folder / "split.csv"}
    anew, anew_seconds = timed(
        lambda: finetune.fit("images", **again, cache_dir="empty", quiet=True)
    )
    figures: dict[str, float] = {"images before": len(early), "images now": len(files)}
    for name, run, seconds in (
        ("update", update, update_seconds),
        ("anew", anew, anew_seconds),
    ):
        judged = run.test("images", quiet=True)
        figures |= {f"{name}, {key}": float(judged[key]) for key in ("accuracy", "nll")}
        figures[f"{name}, seconds"], figures[f"{name}, processor seconds"] = seconds
    ratios = np.divide(update_seconds, anew_seconds)
    figures["seconds, update / anew"], figures["processor seconds, update / anew"] = ratios
    figures["greatest difference of a weight, of the largest"] = apart(update, anew)
    told = update.metrics["update"]
    figures |= {f"old test images, {key}": float(value) for key, value in told.items()}
    return figures


def apart(one: finetune.Run, other: finetune.Run) -> float:
    """How far the tensors of two networks are apart at most, as a share of the largest of each."""
    tensors, others = (run.predictor().model.state_dict() for run in (one, other))
    assert tensors.keys() == others.keys()
    floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    differences = [(tensors[name] - others[name]).abs().max() for name in floats]
    largest = [tensors[name].abs().max().clamp_min(1e-30) for name in floats]
    return max(float(each / most) for each, most in zip(differences, largest, strict=True))


def timed(work: Callable[[], finetune.Run]) -> tuple[finetune.Run, tuple[float, float]]:
    """What it made; its seconds on the clock, and of this process and its children."""
    began, used = time.monotonic(), processor_seconds()
    made = work()
    return made, (time.monotonic() - began, processor_seconds() - used)


def processor_seconds() -> float:
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


def link(files: list[Path]) -> None:
    """Each file into the folder of its class."""
    for path in files:
        place = Path("images", path.parent.name, f"{path.parent.parent.name}-{path.name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(path)


if __name__ == "__main__":
    main()
