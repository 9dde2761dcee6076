"""A folder that has grown: ``fit --update`` against the same recipe begun again on the same split.

    python benchmarks/bench_update.py DATA [--repeats 3] [--strategy head]

DATA holds a folder of images a class, perhaps below train and test, which are put together. A fit
on half of the images, then the other half is added, with one class that the first half lacked. The
update and a fit from the pretrained weights, by the recipe that the first fit chose and on the
sides that the update dealt, are judged on the same test images. Prints accuracy, NLL and seconds of
both, and the paired differences.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

import finetune

ENDINGS = {".jpg", ".jpeg", ".png"}
OPTIONS = {"backbone": "tf_efficientnet_lite0", "accelerator": "cpu", "quiet": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--strategy", default="auto")
    options = parser.parse_args()
    files = sorted(p for p in options.data.rglob("*") if p.suffix.lower() in ENDINGS)
    rows = []
    for seed in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            rows.append(updated_and_anew(files, seed, options.strategy))
        print(seed, " ".join(f"{name}={value:.3f}" for name, value in rows[-1].items()), flush=True)
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name:<28} {np.mean(values):.4f} (standard deviation {np.std(values):.4f})")


def updated_and_anew(files: list[Path], seed: int, strategy: str) -> dict[str, float]:
    """Both fits' figures on the same test images; images are linked below the working folder."""
    generator = np.random.default_rng(seed)
    names = sorted({path.parent.name for path in files})
    late = names[int(generator.integers(len(names)))]
    order = generator.permutation(len(files))
    early = [i for i in order[: len(order) // 2] if files[i].parent.name != late]
    link([files[i] for i in early])
    settings = {**OPTIONS, "strategy": strategy, "seed": seed, "split_seed": seed}
    first = finetune.fit("images", **settings)
    link(files)
    update = finetune.fit(update=first.folder, quiet=True)
    anew = finetune.fit(
        "images",
        config=first.folder / "config.yaml",
        manifest=update.folder / "split.csv",
        quiet=True,
    )
    figures = {}
    for name, run in (("update", update), ("anew", anew)):
        judged = run.test("images", quiet=True)
        figures |= {f"{name} {key}": float(judged[key]) for key in ("accuracy", "nll")}
        figures[f"{name} seconds"] = run.metrics["fit"]["seconds"]
    for key in ("accuracy", "nll", "seconds"):
        figures[f"{key}, update minus anew"] = figures[f"update {key}"] - figures[f"anew {key}"]
    return figures


def link(files: list[Path]) -> None:
    """Each file into the folder of its class."""
    for path in files:
        place = Path("images", path.parent.name, f"{path.parent.parent.name}-{path.name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(path.absolute())


if __name__ == "__main__":
    main()
