"""One final layer on all backbones' features, against the mean of theirs, a selection and the best.

    python benchmarks/bench_joint.py DATA... --per-class 5 10 20 0 --draws 10

DATA holds ``train/<class>/`` and ``test/<class>/`` (or ``val``, which judges then). 0 images a
class are all of them, in one draw. Of every draw all images learn, each backbone's final layer
alone and one on all features, and out-of-fold answers choose, as in ``fit --backbones A,B,C``: the
best single one, the selected ones, and what is delivered (the least out-of-fold NLL of the joint
one, the selected and the mean of all). The images that judge are never among them. Features are of
the plain images, computed once and kept in the cache of a fit; seconds are of the final layers and
of choosing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune import ImageClassifier, ImageFolderDataModule
from finetune.combining.joint_probe import fit_joint_probe
from finetune.combining.pooling import pool
from finetune.combining.selection import select_members
from finetune.commands.allocator import keep_freed_memory
from finetune.spec.images import Split
from finetune.tasks.multiclass import MULTICLASS
from finetune.training.features.extract import dataset_for, frozen_features
from finetune.training.features.store import FeatureStore
from finetune.training.linear_probe import fit_probe, out_of_fold
from finetune.training.penalty_search import FOLDS, stratified_parts

WAYS = ("mean single", "best single", "mean of all", "selected", "joint", "delivered")


class Seen(NamedTuple):
    """``(N, D_m)`` of each backbone, and labels ``(N,)``."""

    features: list[Tensor]
    labels: Tensor

    def of(self, rows: Tensor) -> Seen:
        """Some of the images."""
        return Seen([each[rows] for each in self.features], self.labels[rows])


class Answers(NamedTuple):
    """Logits of one way: out of fold, and of the images that judge; and the seconds it took."""

    chosen_by: Tensor
    judged: Tensor
    seconds: float


def main() -> None:
    """Measure every cell and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    names = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]
    parser.add_argument("--backbones", nargs="+", default=names)
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 10, 20, 0])
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()
    print("| images | a class | way | accuracy, % | NLL | seconds | delivered |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for root in options.data:
        train, test = seen_by(root, options.backbones)
        for count in options.per_class:
            draws = options.draws if count else 1
            found = [measured(train.of(few(train.labels, count, d)), test) for d in range(draws)]
            for way in WAYS:
                rows = torch.tensor([each[way] for each in found], dtype=torch.float64)
                cells = " | ".join(spread(column) for column in rows.T[:3])
                share = f"{int(rows[:, 3].sum())} of {draws}" if bool(rows[:, 3].any()) else ""
                print(f"| {Path(root).name} | {count or 'all'} | {way} | {cells} | {share} |")
            print(end="", flush=True)


def spread(values: Tensor) -> str:
    """A mean, with what it would be in 95 % of as many draws."""
    digits = 1 if values.mean() > 10 else 3
    if len(values) < 2:
        return f"{float(values[0]):.{digits}f}"
    wide = 1.96 * float(values.std()) / len(values) ** 0.5
    return f"{float(values.mean()):.{digits}f} ± {wide:.{digits}f}"


def seen_by(root: str, backbones: list[str]) -> tuple[Seen, Seen]:
    """What learns and what judges, as each backbone sees it."""
    data = ImageFolderDataModule(root, val_fraction=0.0, test_fraction=0.0)
    data.setup("fit")
    store = FeatureStore.wanted("auto", None)
    judging: Split = "test" if data.images("test") else "val"
    sides: tuple[Split, Split] = "train", judging
    found: dict[Split, list[Tensor]] = {side: [] for side in sides}
    for backbone in backbones:
        classifier = ImageClassifier(data.class_names, backbone).eval()
        data.prepare_for(classifier.preprocessing)
        for side in sides:
            dataset, workers = dataset_for(classifier, data, side)
            features = frozen_features(classifier, dataset, store=store, num_workers=workers)
            found[side].append(features.tensor())
    labels = {side: torch.tensor([image.label for image in data.images(side)]) for side in sides}
    return Seen(found["train"], labels["train"]), Seen(found[judging], labels[judging])


def few(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """The rows of so many images of each class, drawn by a seed; 0: all."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat(
        [order[labels[order] == each][: per_class or None] for each in labels.unique()]
    )


def measured(train: Seen, test: Seen) -> dict[str, tuple[float, ...]]:
    """Accuracy in %, NLL, seconds and whether it is delivered, of each way."""
    classes, labels = len(train.labels.unique()), train.labels
    fold_of = stratified_parts(labels, torch.arange(len(labels)), FOLDS, 0)
    alone = [
        single(each, labels, judged, classes, fold_of)
        for each, judged in zip(train.features, test.features, strict=True)
    ]
    members = torch.stack([each.chosen_by for each in alone])
    judged = torch.stack([each.judged for each in alone])
    spent = sum(each.seconds for each in alone)
    started = time.perf_counter()
    selected = select_members(members, labels).coefficients
    choosing = spent + time.perf_counter() - started
    equal = [1 / len(alone)] * len(alone)

    def together(shares: list[float], seconds: float) -> Answers:
        pooled = (pool(MULTICLASS, logits, shares, method="mean") for logits in (members, judged))
        return Answers(*pooled, seconds)

    ways = {
        "best single": min(alone, key=lambda each: nll(each.chosen_by, labels)),
        "mean of all": together(equal, spent),
        "selected": together(list(selected), choosing),
        "joint": joint(train, test, classes, fold_of),
    }
    offered = ("joint", "selected", "mean of all")
    taken = min(offered, key=lambda way: nll(ways[way].chosen_by, labels))
    everything = sum(ways[way].seconds for way in ("selected", "joint"))
    ways["delivered"] = ways[taken]._replace(seconds=everything)
    rows = {
        way: (*figures(answers.judged, test.labels), answers.seconds, float(way == taken))
        for way, answers in ways.items()
    }
    each = torch.tensor([figures(answers.judged, test.labels) for answers in alone]).mean(dim=0)
    rows["mean single"] = (*each.tolist(), spent / len(alone), 0.0)
    return rows


def single(
    features: Tensor, labels: Tensor, judged: Tensor, classes: int, fold_of: Tensor
) -> Answers:
    """One backbone's final layer."""
    started = time.perf_counter()
    probe = fit_probe(features, labels, classes)
    answers = out_of_fold(fit_probe, features, labels, classes, fold_of=fold_of, l2=probe.l2)
    return Answers(answers, probe.logits(judged), time.perf_counter() - started)


def joint(train: Seen, test: Seen, classes: int, fold_of: Tensor) -> Answers:
    """One final layer on all features."""
    started = time.perf_counter()
    probes = fit_joint_probe(train.features, train.labels, classes, fold_of=fold_of)
    answers = probes[0].held_out_logits
    assert answers is not None
    parts = [probe.logits(each) for probe, each in zip(probes, test.features, strict=True)]
    return Answers(answers, torch.stack(parts).sum(dim=0), time.perf_counter() - started)


def figures(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in % and NLL in nats."""
    return 100 * float((logits.argmax(1) == labels).double().mean()), nll(logits, labels)


def nll(logits: Tensor, labels: Tensor) -> float:
    """The mean in nats."""
    return float(cross_entropy(logits, labels))


if __name__ == "__main__":
    main()
