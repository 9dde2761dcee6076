"""What 50 more labels would bring: as predicted from a part of the images, and as seen with more.

    python benchmarks/bench_label_worth.py DATA... [--draws 20] [--now 120 240] [--more 50]

DATA holds a folder of images a class, perhaps below train and test, which are put together. In each
draw so many images at random are labelled; the learning curve of a final layer on their frozen
features predicts the accuracy gained by more of them. Then more are labelled, and both layers are
judged on all images that are left. The true gain is the mean of what was seen over many pairs of
draws. Prints the mean prediction, what was seen, and how often the band holds it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from bench_unknown import images_of
from scipy.stats import t
from torch import Tensor

from finetune import ImageClassifier
from finetune.evaluation.learning_curve import LearningCurve
from finetune.prediction.feature_space import features_of
from finetune.training.features.store import FeatureStore
from finetune.training.linear_probe import fit_probe
from finetune.training.nested_probes import nested_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--now", type=int, nargs="+", default=[120, 240])
    parser.add_argument("--more", type=int, default=50)
    options = parser.parse_args()
    print(f"| | labels | predicted gain of {options.more} | band | seen | band holds it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for root in options.data:
        paths, labels, names = images_of(root)
        classifier = ImageClassifier(names, backbone=options.backbone).eval()
        features = torch.from_numpy(features_of(classifier, paths, store=FeatureStore()).values)
        for now in options.now:
            wanted = options.draws, options.pairs
            row = predicted_and_seen(features, labels, now, options.more, *wanted)
            print(f"| {root.name} | {now} | {row}", flush=True)


def predicted_and_seen(
    features: Tensor, labels: Tensor, now: int, more: int, draws: int, pairs: int
) -> str:
    """The cells of one row, in points of accuracy."""
    penalty = fit_probe(features, labels, int(labels.max()) + 1).l2
    seen = [gain_seen(features, labels, now, more, penalty, seed) for seed in range(pairs)]
    truth = float(np.mean(seen))
    half = float(t.ppf(0.975, pairs - 1) * np.std(seen, ddof=1) / np.sqrt(pairs))
    found = []
    for seed in range(draws):
        rows = torch.from_numpy(np.random.default_rng(1000 + seed).permutation(len(labels)))[:now]
        answers = nested_answers(features[rows], labels[rows], torch.arange(now), seed=seed)
        gain = LearningCurve(*answers).gain(now, more)
        found.append((gain.value, gain.low, gain.high))
    value, low, high = 100 * np.mean(found, axis=0)
    spread = 100 * np.std([each[0] for each in found], ddof=1)
    holds = np.mean([each[1] <= truth <= each[2] for each in found])
    return (
        f"{value:.2f} (standard deviation {spread:.2f}) | [{low:.2f}, {high:.2f}] | "
        f"{100 * truth:.2f} [{100 * (truth - half):.2f}, {100 * (truth + half):.2f}] | "
        f"{holds:.2f} of {draws} |"
    )


def gain_seen(
    features: Tensor, labels: Tensor, now: int, more: int, penalty: float, seed: int
) -> float:
    """Accuracy of a layer that learnt from more, minus that of one that learnt from fewer."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    judging, classes = order[now + more :], int(labels.max()) + 1
    found = []
    for count in (now, now + more):
        known = order[:count]
        probe = fit_probe(features[known], labels[known], classes, l2=penalty)
        right = probe.logits(features[judging]).argmax(1) == labels[judging]
        found.append(float(right.double().mean()))
    return found[1] - found[0]


if __name__ == "__main__":
    main()
