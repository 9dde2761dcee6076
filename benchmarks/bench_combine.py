"""Many fits against one: soups, ensembles, calibration; and what combining costs.

    python benchmarks/bench_combine.py quality DATA... --weights mobilenetv2_100.safetensors
    python benchmarks/bench_combine.py averaging
    python benchmarks/bench_combine.py heads
    python benchmarks/bench_combine.py time FOLDER CHECKPOINT...

quality    fits five members of two pretrained backbones for each seed and prints test accuracy,
           NLL and calibration error of the best member, the mean member, soups and ensembles.
           DATA holds one folder of images a class, perhaps below train, val and test.
averaging  peak memory and time of averaging 2 and 20 checkpoints of resnet50.
heads      time of one head and of ten heads on one frozen backbone.
time       an ensemble over a folder against its members' forward passes and one decode an image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune import ImageClassifier, ImageFolderDataModule, cli
from finetune.combining.bootstrap_heads import ensemble_of_heads
from finetune.combining.ensemble import Ensemble
from finetune.combining.holdout_roles import of_role
from finetune.combining.soups import average_checkpoints
from finetune.evaluation.evaluate import evaluate_logits
from finetune.prediction import ImageViews, find_images, predict
from finetune.tasks.held_out_loss import held_out_loss
from finetune.training.checkpoints import describe, plain, write_checkpoint
from finetune.training.linear_probe import Probe

# Backbone, learning rate as a factor of the chosen one, augmentation.
MEMBERS = (
    ("tf_efficientnet_lite0", 1.0, "light"),
    ("tf_efficientnet_lite0", 0.5, "medium"),
    ("tf_efficientnet_lite0", 2.0, "light"),
    ("mobilenetv2_100", 1.0, "light"),
    ("mobilenetv2_100", 2.0, "medium"),
)
SAME_BACKBONE = 3  # the first so many can be averaged
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benches = parser.add_subparsers(dest="bench", required=True)
    quality = benches.add_parser("quality")
    quality.add_argument("data", nargs="+", type=Path)
    quality.add_argument("--weights", type=Path, required=True, help="of mobilenetv2_100")
    quality.add_argument("--seeds", type=int, default=3)
    quality.add_argument("--lr", type=float, default=5e-4, help="the recipe's, for partial:N")
    quality.add_argument("--runs", type=Path, help="keep and reuse the fits here")
    quality.add_argument("--teacher", action="store_true", help="also distil the ensemble of all")
    quality.add_argument("--output", type=Path, help="JSON with all figures")
    averaging = benches.add_parser("averaging")
    averaging.add_argument("--count", type=int, help="only average so many; used by itself")
    averaging.add_argument("--folder", type=Path, help="of the checkpoints; used by itself")
    heads = benches.add_parser("heads")
    heads.add_argument("--backbone", default="tf_efficientnet_lite0")
    heads.add_argument("--images", type=int, default=128)
    times = benches.add_parser("time")
    times.add_argument("images", type=Path)
    times.add_argument("checkpoints", nargs="+")
    times.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = {
        "quality": quality_bench,
        "averaging": averaging_bench,
        "heads": heads_bench,
        "time": time_bench,
    }
    bench[options.bench](options)


def quality_bench(options: argparse.Namespace) -> None:
    everything: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for root in options.data:
            rows: dict[str, list[Figures]] = defaultdict(list)
            for seed in range(options.seeds):
                runs = (options.runs or Path(scratch)) / root.name
                for name, figures in one_seed(root, seed, runs, options):
                    rows[name].append(figures)
            everything[root.name] = rows
            print_table(root.name, rows)
    if options.output is not None:
        options.output.write_text(json.dumps(everything, indent=2) + "\n")


def one_seed(
    root: Path, seed: int, runs: Path, options: argparse.Namespace
) -> Iterator[tuple[str, Figures]]:
    """Fit, combine and judge: ``(row of the table, figures)``."""
    paths = [fit_member(root, seed, number, runs, options) for number in range(len(MEMBERS))]
    members = Ensemble.from_checkpoints(paths)
    data = ImageFolderDataModule(root, class_names=members.class_names, seed=seed)
    val, test = members.held_out(data), members.held_out(data, "test")
    pick = of_role(val.ids, val.labels.tolist(), "pick", "half")
    losses = [held_out_loss(each[pick], val.labels[pick], "nll") for each in val.member_logits]
    best = min(range(len(paths)), key=losses.__getitem__)
    alone = [figures_of(each, test.labels) for each in test.member_logits]
    for figures, path in zip(alone, paths, strict=True):
        figures["seconds"] = seconds_of(Ensemble.from_file(path), data)
    yield "best member by val", {**alone[best], "val_nll": losses[best]}
    yield "mean member", {key: statistics.fmean(each[key] for each in alone) for key in alone[0]}

    folder = paths[0].parent.parent
    for method in ("uniform", "greedy"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            soup = average_checkpoints(paths[:SAME_BACKBONE], method=method, datamodule=data)
        path = folder / f"{method}_soup.ckpt"
        soup.save(path)
        assert soup.score is not None
        if method == "greedy":
            least = min(score.loss for score in soup.member_scores)
            assert soup.score.loss <= least, "the greedy soup fell below its best member"
        yield from judged(f"{method} soup", Ensemble.from_file(path), data, soup.score.nll)
    yield from judged("ensemble of all", members, data, pooled_nll(members, data, pick))
    greedy = members.select(data)
    nll = pooled_nll(greedy, data, pick)
    assert nll <= min(losses) + 1e-6, "the greedy ensemble fell below its best member"
    yield from judged("greedy ensemble", greedy, data, nll)
    yield from judged("fast ensemble", members.select(data, max_members=2), data, nll)
    if options.teacher:
        members.save(folder / "teacher.ckpt")
        path = fit_member(root, seed, 0, runs, options, teacher=folder / "teacher.ckpt")
        student = Ensemble.from_file(path)
        yield from judged("distilled student", student, data, pooled_nll(student, data, pick))


def fit_member(
    root: Path,
    seed: int,
    number: int,
    runs: Path,
    options: argparse.Namespace,
    *,
    teacher: Path | None = None,
) -> Path:
    """The checkpoint of one fit by the recipe; an earlier one is taken where there is one."""
    backbone, factor, augmentation = MEMBERS[number]
    name = f"seed{seed}-{number}" + ("-student" if teacher else "")
    folder = runs / f"{name}-1"
    if (folder / "metrics.json").is_file():
        return fine_tuned(folder)
    call = ["fit", "--data.root", str(root), "--runs", str(runs), "--name", name]
    call += ["--data.seed", str(seed), "--seed_everything", str(100 * seed + number)]
    call += ["--model.backbone", backbone]
    call += ["--model.lr", str(options.lr * factor), "--data.augmentation", augmentation]
    if backbone == "mobilenetv2_100":
        call += ["--model.pretrained", str(options.weights)]
    if teacher is not None:
        call += ["--model.teacher", str(teacher)]
    if cli.main(call) != 0:
        raise SystemExit(f"the fit {name} failed")
    return fine_tuned(folder)


def fine_tuned(run: Path) -> Path:
    """The fine-tuned checkpoint, also where the final layer alone was kept: that is the same for
    every seed, and nothing to combine.
    """
    beside = run / "checkpoints" / "phase2.ckpt"
    return beside if beside.is_file() else run / "checkpoints" / "best.ckpt"


def judged(
    name: str, ensemble: Ensemble, data: ImageFolderDataModule, val_nll: float
) -> Iterator[tuple[str, Figures]]:
    """A row before and one after calibration, and the time to predict the test images."""
    test = ensemble.held_out(data, "test")
    seconds = seconds_of(ensemble, data)
    figures = figures_of(ensemble.pool(test.member_logits), test.labels)
    yield name, {**figures, "seconds": seconds, "val_nll": val_nll}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few images
        calibrated = ensemble.calibrate(data)
    figures = figures_of(calibrated.combine(test.member_logits), test.labels)
    yield f"{name}, calibrated", {**figures, "seconds": seconds, "val_nll": val_nll}


def figures_of(logits: Tensor, labels: Tensor) -> Figures:
    names = [str(index) for index in range(logits.shape[-1])]
    found = evaluate_logits(labels, logits.double(), names)
    return {
        "accuracy": found.accuracy,
        "nll": found.nll,
        "calibration_error": found.calibration_error,
    }


def pooled_nll(ensemble: Ensemble, data: ImageFolderDataModule, rows: list[int]) -> float:
    held_out = ensemble.held_out(data)
    pooled = ensemble.pool(held_out.member_logits[:, rows])
    return held_out_loss(pooled, held_out.labels[rows], "nll")


def seconds_of(ensemble: Ensemble, data: ImageFolderDataModule) -> float:
    files = [image.path for image in data.images("test")]
    start = time.perf_counter()
    predict(ensemble, files, num_workers=0)
    return time.perf_counter() - start


def print_table(name: str, rows: dict[str, list[Figures]]) -> None:
    print(f"\n{name}: test images, mean (standard deviation) over seeds\n")
    print("| | accuracy | NLL | calibration error | val NLL | predict, s |")
    print("|---|---|---|---|---|---|")
    for row, figures in rows.items():
        cells = []
        for key in ("accuracy", "nll", "calibration_error", "val_nll", "seconds"):
            values = [each[key] for each in figures if key in each]
            spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}" if values else "")
        print(f"| {row} | {' | '.join(cells)} |")


def averaging_bench(options: argparse.Namespace) -> None:
    if options.count is not None:
        average_some(options.folder, options.count)
        return
    with tempfile.TemporaryDirectory() as folder:
        classifier = ImageClassifier(("a", "b"), backbone="resnet50", pretrained=False)
        for number in range(20):
            state_dict = {
                name: tensor + 0.01 * number if tensor.is_floating_point() else tensor
                for name, tensor in classifier.state_dict().items()
            }
            write_checkpoint(
                Path(folder) / f"{number:02d}.ckpt",
                state_dict=state_dict,
                hyper_parameters=plain(dict(classifier.hparams)),
                entry=describe(
                    classifier.class_names,
                    classifier.backbone,
                    classifier.preprocessing,
                    network=classifier.spec,
                ),
            )
        for count in (2, 20):
            call = [sys.executable, __file__, "averaging", "--folder", folder, "--count"]
            subprocess.run([*call, str(count)], check=True)


def average_some(folder: Path, count: int) -> None:
    paths = sorted(folder.glob("*.ckpt"))[:count]
    before = peak_megabytes()
    start = time.perf_counter()
    average_checkpoints(paths)
    averaged = time.perf_counter() - start
    peak = peak_megabytes()
    start = time.perf_counter()
    for path in paths:
        torch.load(path, weights_only=True)
    read = time.perf_counter() - start
    print(
        f"{count:2d} checkpoints of resnet50: peak {peak:.0f} MB ({peak - before:.0f} MB above the "
        f"imports), {averaged:.2f} s; reading them takes {read:.2f} s"
    )


def peak_megabytes() -> float:
    """Of this process since it began; ru_maxrss would count the parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def heads_bench(options: argparse.Namespace) -> None:
    classifier = ImageClassifier([str(n) for n in range(10)], options.backbone, False).eval()
    width = classifier.network.get_classifier().in_features
    heads = [
        Probe(torch.randn(10, width).double(), torch.zeros(10).double(), 1.0) for _ in range(10)
    ]
    size = classifier.preprocessing.image_size
    views = {classifier.preprocessing: torch.rand(options.images, 3, size, size)}
    seconds = {}
    for count in (1, 10):
        ensemble = ensemble_of_heads(classifier, heads[:count])
        ensemble.member_probabilities(views)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            ensemble.member_probabilities(views)
            times.append(time.perf_counter() - start)
        seconds[count] = min(times)
        print(f"{count:2d} heads on one {options.backbone}: {seconds[count]:.3f} s")
    print(f"ratio {seconds[10] / seconds[1]:.3f}")


def time_bench(options: argparse.Namespace) -> None:
    ensemble = Ensemble.from_checkpoints(options.checkpoints)
    members = [Ensemble.from_file(path) for path in options.checkpoints]
    files = find_images(options.images)
    rounds: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        start = time.perf_counter()
        loader = DataLoader(ImageViews(files, ensemble.preprocessings), batch_size=32)
        batches = [dict(zip(ensemble.preprocessings, views, strict=True)) for _, views in loader]
        rounds["decode"].append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode():
            for member in members:
                for views in batches:
                    member.member_probabilities(views)
        rounds["forward"].append(time.perf_counter() - start)
        start = time.perf_counter()
        predict(ensemble, files, num_workers=0)
        rounds["ensemble"].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    print({name: round(value, 2) for name, value in middle.items()})
    print(f"ratio {middle['ensemble'] / (middle['decode'] + middle['forward']):.3f}")


if __name__ == "__main__":
    main()
