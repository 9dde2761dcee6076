"""A final layer that reads several stages: never, always, and where it is chosen, for every task.

    python benchmarks/bench_stages.py DATA... [--labels FLOWERS12] [--numbers DATA] --draws 5

DATA holds ``train/<class>/`` and ``test/<class>/`` (or ``val``, which judges then), and each count
is of images a class, 0 for all. ``--labels``: species and colours of ``bench_labels.py``;
``--numbers``: angles and brightness of ``bench_numbers.py``, from photographs of which half judge;
there counts are of images in all. Of every draw a fifth is held out and has its veto, as in a fit.
Features are of the plain images, of one pass, kept in the cache of a fit.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from bench_labels import flower_rows, write_manifest
from bench_numbers import make
from torch import Tensor

from finetune import ImageClassifier, ImageFolderDataModule
from finetune.commands.allocator import keep_freed_memory
from finetune.networks.staged import readable_stages
from finetune.networks.steps import stage_widths
from finetune.spec.images import Split
from finetune.tasks.known import TASKS
from finetune.tasks.task import Task
from finetune.training.features.extract import StageReader, dataset_for, frozen_features
from finetune.training.features.store import FeatureStore
from finetune.training.phases.probe import solver_of
from finetune.training.phases.stage_choice import answers_better, scales_of

SHOWN = ("nll", "accuracy", "map", "mae")


class Seen(NamedTuple):
    """Features of the head ``(N, D)`` and of stages ``(N, S)``, and targets ``(N, ...)``."""

    head: Tensor
    stages: Tensor
    targets: Tensor

    def of(self, rows: Tensor) -> Seen:
        """Some of the images."""
        return Seen(*(each[rows] for each in self))


class Measured(NamedTuple):
    """A set of images, and what its final layers answer for."""

    name: str
    task: Task
    outputs: int
    widths: list[int]
    train: Seen
    test: Seen


def main() -> None:
    """Measure every cell and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--numbers", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 10, 20, 0])
    parser.add_argument("--images", type=int, nargs="+", default=[60, 120, 0])
    parser.add_argument("--draws", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    print("| images | count | never | always | chosen | taken |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for each in measured_sets(options, Path(folder)):
            of_class = each.task.closed_form == "multinomial"
            for count in options.per_class if of_class else options.images:
                draws = [one_draw(each, count, draw) for draw in range(options.draws)]
                ways = zip(*(figures for figures, _ in draws), strict=True)
                cells = " | ".join(told(list(figures)) for figures in ways)
                taken = sum(chosen for _, chosen in draws)
                print(
                    f"| {each.name} | {count or 'all'} | {cells} | {taken} of {len(draws)} |",
                    flush=True,
                )


def measured_sets(options: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    """Those of the command line, one after the other."""
    for root in options.data:
        data = ImageFolderDataModule(root, val_fraction=0.0, test_fraction=0.0)
        yield seen_by(root.name, data, options.backbone)
    if options.labels:
        manifest = write_manifest(folder / "labels.csv", flower_rows(options.labels))
        data = ImageFolderDataModule(options.labels, manifest=manifest, val_fraction=0.0)
        yield seen_by("labels", data, options.backbone)
    if options.numbers:
        make(options.numbers, folder, 480)
        for name in ("angle", "brightness"):
            data = ImageFolderDataModule(
                folder / "images",
                manifest=folder / f"{name}.csv",
                task="regression",
                val_fraction=0.0,
                test_fraction=0.5,
            )
            yield seen_by(name, data, options.backbone)


def seen_by(name: str, data: ImageFolderDataModule, backbone: str) -> Measured:
    """What learns and what judges, as a backbone sees it; numbers standardised."""
    data.setup("fit")
    task = TASKS[data.task_name]
    classifier = ImageClassifier(data.class_names, backbone, task=data.task_name).eval()
    data.prepare_for(classifier.preprocessing)
    stages = readable_stages(classifier.network)
    reader, store = StageReader.of(classifier, stages), FeatureStore.wanted("auto", None)
    width = classifier.network.get_classifier().in_features
    judging: Split = "test" if data.images("test") else "val"
    found = []
    sides: tuple[Split, ...] = ("train", judging)
    for side in sides:
        dataset, workers = dataset_for(classifier, data, side)
        features = frozen_features(reader, dataset, store=store, num_workers=workers).tensor()
        targets = task.collate([image.label for image in data.images(side)])
        if side == "train":
            classifier.unit.learn(targets)
        standardised = classifier.unit.standardised(targets)
        found.append(Seen(features[:, :width], features[:, width:], standardised))
    every = stage_widths(classifier.network)
    outputs = task.number_of_outputs(data.class_names)
    return Measured(name, task, outputs, [every[stage] for stage in stages], *found)


def one_draw(given: Measured, count: int, draw: int) -> tuple[list[dict[str, float]], bool]:
    """Figures of the final layer without stages, with them, and of the chosen; whether taken."""
    task, train = given.task, given.train
    order = torch.randperm(len(train.targets), generator=torch.Generator().manual_seed(draw))
    rows = few(train.targets, order, count) if task.closed_form == "multinomial" else order
    rows = rows if task.closed_form == "multinomial" or not count else rows[:count]
    held = torch.arange(len(rows)) % 5 == 0
    learns, vetoes = train.of(rows[~held]), train.of(rows[held])
    scales = scales_of(learns.head, learns.stages, given.widths)

    def wide(seen: Seen) -> Tensor:
        return torch.cat([seen.head, seen.stages * scales], dim=1)

    fit = solver_of(task)
    plain, other = (
        fit(each, learns.targets, given.outputs, held_out=True)
        for each in (learns.head, wide(learns))
    )
    agree = task.held_out_loss(
        other.logits(wide(vetoes)), vetoes.targets, "nll"
    ) <= task.held_out_loss(plain.logits(vetoes.head), vetoes.targets, "nll")
    groups = torch.arange(len(learns.targets))
    taken = agree and answers_better(other, plain, task, learns.targets, groups)
    judged = given.test.targets
    never = task.figures(plain.logits(given.test.head), judged)
    always = task.figures(other.logits(wide(given.test)), judged)
    return [never, always, always if taken else never], taken


def few(labels: Tensor, order: Tensor, per_class: int) -> Tensor:
    """The first so many images of each class in an order, mixed; 0: all."""
    chosen = [order[labels[order] == each][: per_class or None] for each in labels.unique()]
    return order[torch.isin(order, torch.cat(chosen))]


def told(figures: list[dict[str, float]]) -> str:
    """Means, those that tell the most."""
    names = [name for name in SHOWN if name in figures[0]]
    means = {name: sum(each[name] for each in figures) / len(figures) for name in names}
    return " / ".join(
        f"{100 * means[name]:.1f}" if name in ("accuracy", "map") else f"{means[name]:.3f}"
        for name in names
    )


if __name__ == "__main__":
    main()
