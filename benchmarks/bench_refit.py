"""What it is worth that all labelled images learn: the final layer before and after its refit.

    python benchmarks/bench_refit.py DATA... --per-class 5 10 20 --draws 10

DATA holds ``train/<class>/`` and ``test/<class>/`` (or ``val``, which judges then). Of every draw a
fifth is held out. Before: the final layer learns from the others, and those held out say how good
it is. After: it learns from all of them, and out-of-fold answers say it. Both are judged on the
test images; how far off the two say-so's are is the mean distance to the test NLL. Features and
views are those of a fit, kept in its cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune import ImageClassifier, ImageFolderDataModule
from finetune.commands.allocator import keep_freed_memory
from finetune.spec.images import Split
from finetune.training.features.extract import StoredView, dataset_for, frozen_features
from finetune.training.features.store import FeatureStore
from finetune.training.linear_probe import fit_probe, out_of_fold
from finetune.training.penalty_search import FOLDS, stratified_parts
from finetune.training.phases.probe import MOST_VIEWS, views_of_few

VIEWS = 3  # that a fit keeps at least, unless told otherwise


def main() -> None:
    """Measure every cell and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()
    print("| images | a class | accuracy, % | after | NLL | after | said NLL is off by | after |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for root in options.data:
        views, labels, test, truth = features_of(root, options.backbone, max(options.per_class))
        for count in options.per_class:
            rows = [measured(views, labels, test, truth, count, d) for d in range(options.draws)]
            table = torch.tensor(rows)
            wide = 1.96 * table.std(dim=0) / len(rows) ** 0.5
            cells = [
                f"{100 * mean:.1f} ± {100 * error:.1f}"
                if column < 2
                else f"{mean:.3f} ± {error:.3f}"
                for column, (mean, error) in enumerate(zip(table.mean(dim=0), wide, strict=True))
            ]
            print(f"| {Path(root).name} | {count} | {' | '.join(cells)} |", flush=True)


def features_of(root: str, backbone: str, pool: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """So many training images a class in every view, and the images that judge, with labels."""
    data = ImageFolderDataModule(root, val_fraction=0.0, test_fraction=0.0)
    data.setup("fit")
    classifier = ImageClassifier(data.class_names, backbone).eval()
    data.prepare_for(classifier.preprocessing)
    store = FeatureStore.wanted("auto", None)

    def seen(side: Split, rows: list[int], view: StoredView | None = None) -> Tensor:
        dataset, workers = dataset_for(classifier, data, side, view)
        dataset.images = [dataset.images[row] for row in rows]
        return frozen_features(
            classifier, dataset, view=view, store=store, num_workers=workers
        ).tensor()

    labels = torch.tensor([image.label for image in data.images("train")])
    chosen = few(labels, pool, 0)
    views = [None, *(StoredView(number, "light", 0) for number in range(MOST_VIEWS))]
    side: Split = "test" if data.images("test") else "val"
    judging = data.images(side)
    return (
        [seen("train", chosen.tolist(), view) for view in views],
        labels[chosen],
        seen(side, list(range(len(judging)))),
        torch.tensor([image.label for image in judging]),
    )


def few(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """The rows of so many images of each class, drawn by a seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][:per_class] for label in labels.unique()])


def measured(
    views: list[Tensor], labels: Tensor, test: Tensor, truth: Tensor, per_class: int, draw: int
) -> tuple[float, ...]:
    """Accuracy, NLL and what is off by how much, before and after, of one draw."""
    rows = few(labels, per_class, draw)
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[few(labels[rows], max(1, per_class // 5), draw)] = True
    train = rows[~held]
    classes = len(labels.unique())

    def stacked(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = 1 + views_of_few(len(chosen) / classes, VIEWS)
        seen = torch.cat([view[chosen] for view in views[:count]])
        return seen, labels[chosen].repeat(count), torch.arange(len(chosen)).repeat(count)

    seen, targets, groups = stacked(train)
    before = fit_probe(seen, targets, classes, groups=groups)
    said_before = nll(before.logits(views[0][rows[held]]), labels[rows[held]])
    seen, targets, groups = stacked(rows)
    after = fit_probe(seen, targets, classes, groups=groups)
    fold_of = stratified_parts(targets, groups, FOLDS, 0)
    answers = out_of_fold(fit_probe, seen, targets, classes, fold_of=fold_of, l2=after.l2)
    said_after = nll(answers[: len(rows)], labels[rows])
    reached = [probe.logits(test) for probe in (before, after)]
    right = [float((logits.argmax(1) == truth).double().mean()) for logits in reached]
    losses = [nll(logits, truth) for logits in reached]
    return (*right, *losses, abs(said_before - losses[0]), abs(said_after - losses[1]))


def nll(logits: Tensor, labels: Tensor) -> float:
    """The mean in nats."""
    return float(cross_entropy(logits, labels))


if __name__ == "__main__":
    main()
