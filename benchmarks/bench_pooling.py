"""Ways of combining the same members, judged on many draws of images that pick.

    python benchmarks/bench_pooling.py DATA... --runs RUNS

RUNS is what `bench_combine.py quality DATA... --runs RUNS` kept. From the answers of each seed's
members to val and test images is drawn: n images pick, n others fit one temperature, the rest
judges. Prints error, NLL, and NLL after the temperature, each the mean over draws and seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from bench_combine import MEMBERS, fine_tuned
from torch import Tensor

from finetune import ImageFolderDataModule
from finetune.combining.calibrated_answer import USUAL_PRIOR
from finetune.combining.calibration import fit_temperature
from finetune.combining.ensemble import Ensemble
from finetune.combining.pooling import Pooling, pool
from finetune.combining.selection import choose_coefficients, select_members
from finetune.tasks.held_out_loss import held_out_loss, held_out_losses
from finetune.tasks.multiclass import MULTICLASS

IMAGES = (24, 72)
Row = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    print("| set, images that pick | way | error, % | NLL | NLL after a temperature |")
    print("| --- | --- | --- | --- | --- |")
    for root in options.data:
        seeds = [held_out_answers(root, options.runs, seed) for seed in range(options.seeds)]
        for count in IMAGES:
            rows: dict[str, list[Row]] = defaultdict(list)
            for members, labels in seeds:
                generator = np.random.default_rng(0)
                for _ in range(options.draws):
                    order = torch.from_numpy(generator.permutation(len(labels)))
                    parts = order[:count], order[count : 2 * count], order[2 * count :]
                    for way, row in judged(members, labels, *parts).items():
                        rows[way].append(row)
            for way, found in rows.items():
                error, nll, scaled = map(statistics.fmean, zip(*found, strict=True))
                print(f"| {root.name}, {count} | {way} | {error:.2f} | {nll:.3f} | {scaled:.3f} |")


def held_out_answers(root: Path, runs: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Logits ``(M, N, C)`` of one seed's members for val and test images, and labels."""
    paths = [fine_tuned(runs / root.name / f"seed{seed}-{k}-1") for k in range(len(MEMBERS))]
    ensemble = Ensemble.from_checkpoints(paths)
    data = ImageFolderDataModule(root, class_names=ensemble.class_names, seed=seed)
    val, test = ensemble.held_out(data), ensemble.held_out(data, "test")
    answers = torch.cat([val.member_logits, test.member_logits], dim=1)
    return answers.double(), torch.cat([val.labels, test.labels])


def judged(
    members: Tensor, labels: Tensor, pick: Tensor, scale: Tensor, judge: Tensor
) -> dict[str, Row]:
    known, truth = members[:, pick], labels[pick]
    equal = [1 / len(members)] * len(members)
    best = int(held_out_losses(known, truth, "nll").argmin())
    ways: dict[str, tuple[list[float], Pooling]] = {
        "best member": ([float(index == best) for index in range(len(members))], "mean"),
        "all, mean": (equal, "mean"),
        "all, geometric": (equal, "geometric"),
        "learned, mean": (list(choose_coefficients(known, truth, method="learned")), "mean"),
        "greedy, mean": (list(select_members(known, truth).coefficients), "mean"),
        "greedy, geometric": (
            list(select_members(known, truth, pooling="geometric").coefficients),
            "geometric",
        ),
    }
    return {
        way: figures(pool(MULTICLASS, members, coefficients, method=pooling), labels, scale, judge)
        for way, (coefficients, pooling) in ways.items()
    }


def figures(pooled: Tensor, labels: Tensor, scale: Tensor, judge: Tensor) -> Row:
    temperature = fit_temperature(pooled[scale], labels[scale], prior=USUAL_PRIOR).temperature
    answers, truth = pooled[judge], labels[judge]
    scaled = answers / temperature
    return (
        100 * held_out_loss(answers, truth, "accuracy"),
        held_out_loss(answers, truth, "nll"),
        held_out_loss(scaled, truth, "nll"),
    )


if __name__ == "__main__":
    main()
