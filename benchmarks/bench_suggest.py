"""How many labels a wanted accuracy takes: images that are suggested against random order.

    python benchmarks/bench_suggest.py DATA... [--draws 10] [--batch 12] [--most 300]

DATA holds a folder of images a class, perhaps below train and test, which are put together. In each
draw 60 % of the images are a pool without labels and the others judge. Two labels a class begin;
then each order adds a batch by what the final layer, fitted to the labels so far on frozen
features, says of the rest, and the layer is fitted again. Prints how many labels each order takes
to reach a share of the accuracy that the whole pool gives, means over the draws with 95 % intervals
(Student's t; draws share images), and the difference to random order, paired. The penalty is that
of the whole pool, for all orders alike.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_unknown import images_of
from scipy.stats import t
from torch import Tensor

from finetune import ImageClassifier
from finetune.combining.bootstrap_heads import bootstrap_heads
from finetune.combining.uncertainty import entropy, uncertainty
from finetune.prediction.feature_space import features_of
from finetune.prediction.suggestions import informative, spread
from finetune.tasks import categorical
from finetune.training.features.store import FeatureStore
from finetune.training.linear_probe import Probe, fit_probe

HEADS = 10
SHARES = (0.90, 0.95, 0.98)  # of what the whole pool gives
# From the rows that are left, labelled features and labels, and the probe on them, to scores.
Score = Callable[[Tensor, Tensor, Tensor, Probe], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--most", type=int, default=300)
    parser.add_argument("--orders", nargs="+", default=[*ORDERS], choices=[*ORDERS])
    options = parser.parse_args()
    for root in options.data:
        paths, labels, names = images_of(root)
        classifier = ImageClassifier(names, backbone=options.backbone).eval()
        features = torch.from_numpy(features_of(classifier, paths, store=FeatureStore()).values)
        found: dict[str, list[list[float]]] = defaultdict(list)
        for draw in range(options.draws):
            one = partial(labels_needed, features, labels, draw, options.batch, options.most)
            for name in options.orders:
                found[name].append(one(*ORDERS[name]))
            print(draw, {name: rows[-1] for name, rows in found.items()}, flush=True)
        show(f"{root.name}, {options.draws} draws", found)


def random_order(left: Tensor, known: Tensor, labels: Tensor, probe: Probe) -> Tensor:
    return torch.rand(len(left), generator=torch.Generator().manual_seed(len(known)))


def margins(left: Tensor, known: Tensor, labels: Tensor, probe: Probe) -> Tensor:
    return informative(categorical.probabilities(probe.logits(left)))


def entropies(left: Tensor, known: Tensor, labels: Tensor, probe: Probe) -> Tensor:
    return entropy(categorical.probabilities(probe.logits(left)))


def heads(left: Tensor, known: Tensor, labels: Tensor, probe: Probe) -> Tensor:
    classes = len(probe.bias)
    fitted = bootstrap_heads(known, labels, classes, heads=HEADS, l2=probe.l2)
    answers = torch.stack([categorical.probabilities(head.logits(left)) for head in fitted])
    return uncertainty(answers).mutual_information


def all_alike(left: Tensor, known: Tensor, labels: Tensor, probe: Probe) -> Tensor:
    return torch.ones(len(left))


ORDERS: dict[str, tuple[Score, bool]] = {
    "random": (random_order, False),
    "k-centre alone": (all_alike, True),
    "entropy": (entropies, False),
    "1 - margin": (margins, False),
    "mutual information": (heads, False),
    "entropy, spread": (entropies, True),
    "1 - margin, spread": (margins, True),
    "mutual information, spread": (heads, True),
}


def labels_needed(
    features: Tensor,
    labels: Tensor,
    draw: int,
    batch: int,
    most: int,
    score: Score,
    spreads: bool,
) -> list[float]:
    """How many labels reach each share, between batches by a straight line; ``most`` if none do."""
    generator = np.random.default_rng(draw)
    order = torch.from_numpy(generator.permutation(len(labels)))
    pool, judging = order[: round(0.6 * len(order))], order[round(0.6 * len(order)) :]
    classes = int(labels.max()) + 1
    first = [pool[labels[pool] == label][:2] for label in range(classes)]
    known = torch.cat(first)

    def accuracy(rows: Tensor, l2: float | None) -> tuple[float, Probe]:
        probe = fit_probe(features[rows], labels[rows], classes, l2=l2)
        right = probe.logits(features[judging]).argmax(1) == labels[judging]
        return float(right.double().mean()), probe

    whole, best = accuracy(pool, None)
    counts, reached = [], []
    while True:
        value, probe = accuracy(known, best.l2)
        counts.append(len(known))
        reached.append(value / whole)
        if len(known) >= min(most, len(pool)) or value / whole >= max(SHARES):
            break
        left = pool[~torch.isin(pool, known)]
        scores = score(features[left], features[known], labels[known], probe)
        if spreads:
            taken = torch.tensor(spread(scores, features[left], batch))
        else:
            taken = scores.argsort(descending=True)[:batch]
        known = torch.cat([known, left[taken]])
    return [crossing(counts, reached, share, most) for share in SHARES]


def crossing(counts: list[int], reached: list[float], share: float, most: int) -> float:
    """Where a curve first reaches a share."""
    for index, value in enumerate(reached):
        if value >= share and index == 0:
            return float(counts[0])
        if value >= share:
            before, step = reached[index - 1], counts[index] - counts[index - 1]
            return counts[index - 1] + step * (share - before) / (value - before)
    return float(most)


def show(title: str, found: dict[str, list[list[float]]]) -> None:
    heads_ = " | ".join(f"{share:.0%} | minus random" for share in SHARES)
    print(f"\n| {title} | {heads_} |\n| --- |{' --- |' * 2 * len(SHARES)}")
    random = np.array(found["random"])
    for name, rows in found.items():
        values = np.array(rows)
        cells = []
        for column in range(len(SHARES)):
            cells += [mean_of(values[:, column]), mean_of((values - random)[:, column], sign="+")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def mean_of(values: np.ndarray, *, sign: str = "") -> str:
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    mean = np.mean(values)
    return f"{mean:{sign}.0f} [{mean - half:{sign}.0f}, {mean + half:{sign}.0f}]"


if __name__ == "__main__":
    main()
