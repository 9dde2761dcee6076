"""Fine-tuning against fastai, timm's engine and a bare loop: accuracy, and the time to it.

    sh benchmarks/peers/make_venv.sh .venv/bin/python build/peers
    python benchmarks/bench_training.py fits  --data DIR [--weights FILE] --backbone NAME
    python benchmarks/bench_training.py steps [--backbone NAME]

``DIR`` holds ``train/<class>/`` and the images to judge by in ``test/<class>/`` or
``val/<class>/``. Every library trains on ``train`` and is judged on the other; fastai and timm see
those images after each epoch, ours sees them once, in ``finetune test``: what it chooses by, it
holds out from ``train``. Caches start empty. Medians of ``--rounds``.

Goals: (a) fastai's ``fine_tune(1)`` accuracy in a tenth of its time; (b) not less accurate than
``fine_tune(4)`` in half its time; (c) a step at most 1.03 times the bare loop's; (d) an epoch on
kept features at most 1 % of a live one, a step of ``partial:1`` on kept maps at least 3 times
faster than one of ``all``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    fits = verbs.add_parser("fits", help="whole fits, process by process")
    fits.add_argument("--data", type=Path, required=True)
    fits.add_argument("--backbone", default="tf_efficientnet_lite0")
    fits.add_argument("--weights", type=Path, help="default: those of the package for lite0")
    fits.add_argument("--peers", type=Path, default=Path("build/peers/bin/python"))
    fits.add_argument("--rounds", type=int, default=3)
    fits.add_argument("--only", nargs="*", help="run only these rows")
    steps = verbs.add_parser("steps", help="single steps and epochs, in this process")
    steps.add_argument("--backbone", default="tf_efficientnet_lite0")
    steps.add_argument("--batch", type=int, default=16)
    steps.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    if options.verb == "fits":
        run_fits(options)
    else:
        run_steps(options.backbone, options.batch, options.steps)


def run_fits(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        judged = "test" if (options.data / "test").is_dir() else "val"
        weights, classes = weights_file(options, folder)
        manifest = write_manifest(options.data, judged, folder)
        peer = [str(options.data.resolve()), judged, options.backbone, str(weights), str(classes)]
        ours = ["--data.root", str(options.data.resolve()), "--data.manifest", str(manifest)]
        ours += ["--model.backbone", options.backbone]
        ours += ["--model.pretrained", str(weights)]
        python = str(options.peers)
        rows: dict[str, Callable[[int], dict[str, float]]] = {
            "fastai fine_tune(1)": lambda n: run_peer([python, "fastai_fit.py", *peer, "1"]),
            "fastai fine_tune(4)": lambda n: run_peer([python, "fastai_fit.py", *peer, "4"]),
            "timm 5 epochs": lambda n: run_peer([sys.executable, "timm_fit.py", *peer, "5"]),
            "finetune head": lambda n: run_ours([*ours, "--model.strategy", "head"], folder, n),
            "finetune default": lambda n: run_ours(ours, folder, n),
        }
        print(f"{options.data.name}, {options.backbone}")
        print(f"{'':<22}{'accuracy':>9}{'process s':>11}{'training s':>11}   each round")
        for name, run in rows.items():
            if options.only and name not in options.only:
                continue
            found = [run(number) for number in range(options.rounds)]
            middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
            print(
                f"{name:<22}{middle['accuracy']:>9.4f}{middle['process']:>11.1f}"
                f"{middle['training']:>11.1f}"
                f"   {' '.join(format(one['accuracy'], '.4f') for one in found)}",
                flush=True,
            )


def weights_file(options: argparse.Namespace, folder: Path) -> tuple[Path, int]:
    """The weights that all use, as a file, and how many classes its final layer has (0: none)."""
    if options.weights is not None:
        return options.weights.resolve(), 0
    import torch

    from finetune.networks.factory import create_network

    network = create_network(options.backbone, 2, pretrained=True)
    final = {f"{name}" for name, _ in network.named_parameters() if "classifier" in name}
    state = {name: value for name, value in network.state_dict().items() if name not in final}
    path = folder / "weights.pth"
    torch.save(state, path)
    return path, 0


def write_manifest(data: Path, judged: str, folder: Path) -> Path:
    """``train`` with every fifth image of a class as val; the judged images as test."""
    path = folder / "split.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split in ("train", judged):
            for image in sorted(data.resolve().glob(f"{split}/*/*")):
                inner = "val" if int(image_number(image)) % 5 == 0 else "train"
                row = inner if split == "train" else "test"
                writer.writerow([image.relative_to(data.resolve()), image.parent.name, row])
    return path


def image_number(image: Path) -> int:
    return sorted(image.parent.iterdir()).index(image)


def run_peer(command: list[str]) -> dict[str, float]:
    started = time.perf_counter()
    done = subprocess.run(
        [command[0], str(PEERS / command[1]), *command[2:]],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "accuracy": found["accuracy"],
        "process": time.perf_counter() - started,
        "training": found["training"],
    }


def run_ours(arguments: list[str], folder: Path, number: int) -> dict[str, float]:
    runs = folder / f"runs-{time.monotonic_ns()}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(runs / "cache")}
    finetune = [sys.executable, "-m", "finetune"]
    started = time.perf_counter()
    subprocess.run(
        [*finetune, "fit", *arguments, "--runs", str(runs), "--data.seed", str(number)],
        check=True,
        capture_output=True,
        env=environment,
    )
    process = time.perf_counter() - started
    run = next(path for path in runs.iterdir() if path.is_dir() and (path / "config.yaml").exists())
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    subprocess.run(
        [*finetune, "test", "--ckpt_path", checkpoint, *arguments[:4]],
        check=True,
        capture_output=True,
        env=environment,
    )
    metrics = json.loads((run / "metrics.json").read_text())
    written = (run / "config.yaml").stat().st_mtime, (run / "checkpoints/best.ckpt").stat().st_mtime
    training = max((run / "checkpoints/last.ckpt").stat().st_mtime, written[1]) - written[0]
    return {"accuracy": metrics["test"]["accuracy"], "process": process, "training": training}


def run_steps(backbone: str, batch: int, count: int) -> None:
    import torch

    from finetune.networks.freezing import freeze, network_stages, split_at, stages_below
    from finetune.training.classifier import ImageClassifier
    from finetune.training.optimizers import create_optimizer, parameter_groups

    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(12))
    classifier = ImageClassifier(names, backbone, pretrained=False, batchnorm="eval")
    size = classifier.preprocessing.image_size
    images, labels = torch.rand(batch, 3, size, size), torch.randint(12, (batch,))
    network = classifier.network

    bare = bare_step(classifier, images, labels)
    lightning = LightningSteps(classifier, images, labels)
    ours = lightning.seconds_a_step
    times: dict[str, list[float]] = {"bare loop": [], "finetune all": []}
    for _ in range(count):
        times["bare loop"].append(timed(bare))
        times["finetune all"].append(ours(2))
    stage = list(network_stages(network))[-2]
    freeze(network, stages_below(network, stage))
    bottom, top = split_at(network, stage)
    with torch.no_grad():
        maps = bottom((images - classifier.mean) / classifier.std)
    optimizer = create_optimizer(parameter_groups(network, lr=1e-5))

    def partial() -> None:
        optimizer.zero_grad()
        classifier.loss(top(maps), labels).backward()
        optimizer.step()

    freeze(network, stages_below(network, "head"))
    head = split_at(network, "head")
    with torch.no_grad():
        features = head.bottom((images - classifier.mean) / classifier.std)
    head_optimizer = create_optimizer(parameter_groups(network, lr=1e-5))

    def head_step() -> None:
        head_optimizer.zero_grad()
        classifier.loss(head.top(features), labels).backward()
        head_optimizer.step()

    times["head, kept features"] = [timed(head_step) for _ in range(3 * count)]
    freeze(network, stages_below(network, stage))
    times["partial:1, kept maps"] = [timed(partial) for _ in range(count)]
    freeze(network, ())
    base = statistics.median(times["bare loop"])
    print(f"{backbone}, batches of {batch}, {size} pixels")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:<22}{1000 * middle:>10.2f} ms a step {middle / base:>8.4f} of the bare loop")


def bare_step(classifier: Any, images: Any, labels: Any) -> Callable[[], None]:
    """One AdamW step in plain torch: the same network, loss and batch."""
    import torch

    network = classifier.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def step() -> None:
        classifier.train()
        optimizer.zero_grad()
        logits = network((images - classifier.mean) / classifier.std)
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    return step


class LightningSteps:
    """Steps of the classifier under Lightning's trainer."""

    def __init__(self, classifier: Any, images: Any, labels: Any) -> None:
        self.classifier, self.batch = classifier, (images, labels)

    def seconds_a_step(self, count: int) -> float:
        """Median time from the start of one batch to the start of the next."""
        import logging
        import warnings

        from lightning import Trainer
        from lightning.pytorch.callbacks import Callback
        from torch.utils.data import DataLoader

        starts: list[float] = []

        class Clock(Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                starts.append(time.perf_counter())

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            max_epochs=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )
        loader = DataLoader([self.batch] * (count + 1), batch_size=None)
        self.classifier.train()
        trainer.fit(self.classifier, loader)
        steps = [later - earlier for earlier, later in pairwise(starts)]
        return statistics.median(steps)


def timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
