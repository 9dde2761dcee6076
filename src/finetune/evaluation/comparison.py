"""Which of several classifiers is really better, judged on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune.errors import UsageError
from finetune.evaluation.evaluate import evaluate_logits
from finetune.evaluation.intervals import bootstrap_interval
from finetune.evaluation.result import Evaluation


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two classifiers on the same images.

    Attributes:
        first_only, second_only: images that only one of the two gets right.
        difference: accuracy of the first minus that of the second, in ``[-1, 1]``.
        interval: paired bootstrap interval of the difference.
        p_value: exact McNemar test of "both are equally often right".
        adjusted_p_value: the same, after Holm's correction for all pairs that were looked at.
    """

    first: str
    second: str
    images: int
    first_only: int
    second_only: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    adjusted_p_value: float

    def is_real(self, level: float = 0.05) -> bool:
        """Whether chance alone would make such a difference in less than ``level`` of all cases."""
        return self.adjusted_p_value < level

    def verdict(self, level: float = 0.05) -> str:
        """One sentence for people."""
        forward = self.difference >= 0
        better, worse = (self.first, self.second) if forward else (self.second, self.first)
        low, high = self.interval if forward else (-self.interval[1], -self.interval[0])
        figures = f"{100 * abs(self.difference):.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
        if self.is_real(level):
            return f"{better} is better than {worse} by {figures}."
        return f"{self.first} and {self.second} are not distinguishable: {figures} apart."


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Evaluations on the images that all have in common, best first, and every pair of them."""

    evaluations: dict[str, Evaluation]
    pairs: tuple[PairedComparison, ...]
    left_out: int

    @property
    def as_good_as_the_best(self) -> frozenset[str]:
        """Names that cannot be told apart from the first one, itself included."""
        best = next(iter(self.evaluations))
        worse = {
            pair.second if pair.first == best else pair.first
            for pair in self.pairs
            if best in (pair.first, pair.second) and pair.is_real()
        }
        return frozenset(self.evaluations) - worse


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar test from the numbers of images that only one side gets right."""
    discordant = first_only + second_only
    return 1.0 if discordant == 0 else float(binomtest(first_only, discordant, 0.5).pvalue)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down p-values, in the order given: valid however the tests depend."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def compare_pair(
    first: tuple[str, NDArray[np.bool_]],
    second: tuple[str, NDArray[np.bool_]],
    *,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compare two names with their right answers ``(N,)`` to the same images in the same order."""
    (first_name, first_correct), (second_name, second_correct) = first, second
    if first_correct.shape != second_correct.shape or len(first_correct) == 0:
        raise UsageError(
            f"Expected answers to the same images, found {len(first_correct)} of {first_name} and "
            f"{len(second_correct)} of {second_name}."
        )
    difference = first_correct.astype(np.int64) - second_correct.astype(np.int64)
    first_only, second_only = int((difference > 0).sum()), int((difference < 0).sum())
    p_value = mcnemar_p_value(first_only, second_only)
    return PairedComparison(
        first=first_name,
        second=second_name,
        images=len(difference),
        first_only=first_only,
        second_only=second_only,
        difference=float(difference.mean()),
        interval=bootstrap_interval(difference, confidence_level=confidence_level, seed=seed),
        p_value=p_value,
        adjusted_p_value=p_value,
    )


def compare_all(evaluations: Mapping[str, Evaluation], *, seed: int = 0) -> Leaderboard:
    """Rank evaluations by accuracy on their common images and compare each with each.

    Images are matched by path. Images that not all evaluations know are left out and counted.

    Raises:
        UsageError: fewer than two evaluations, no image in common, or labels that disagree.
    """
    if len(evaluations) < 2:
        raise UsageError(f"Expected at least two sets of predictions, found {len(evaluations)}.")
    common, left_out = _on_common_images(evaluations)
    ranked = dict(sorted(common.items(), key=lambda item: -item[1].accuracy))
    correct = {name: e.predictions == e.labels for name, e in ranked.items()}
    pairs = [
        compare_pair((a, correct[a]), (b, correct[b]), seed=seed)
        for a, b in combinations(ranked, 2)
    ]
    adjusted = holm_correction([pair.p_value for pair in pairs])
    return Leaderboard(
        ranked,
        tuple(replace(p, adjusted_p_value=q) for p, q in zip(pairs, adjusted, strict=True)),
        left_out,
    )


def compare_classes(
    first: tuple[str, Evaluation], second: tuple[str, Evaluation], *, seed: int = 0
) -> dict[str, PairedComparison]:
    """Compare two, of the same images in the same order, on those of each class by itself.

    p-values are corrected for the number of classes (Holm).
    """
    (first_name, one), (second_name, other) = first, second
    correct = one.predictions == one.labels, other.predictions == other.labels
    pairs = {
        one.class_names[label]: compare_pair(
            (first_name, correct[0][one.labels == label]),
            (second_name, correct[1][one.labels == label]),
            seed=seed,
        )
        for label in np.unique(one.labels)
    }
    adjusted = holm_correction([pair.p_value for pair in pairs.values()])
    return {
        name: replace(pair, adjusted_p_value=p_value)
        for (name, pair), p_value in zip(pairs.items(), adjusted, strict=True)
    }


def _on_common_images(
    evaluations: Mapping[str, Evaluation],
) -> tuple[dict[str, Evaluation], int]:
    positions = {name: dict(_numbered_paths(name, e)) for name, e in evaluations.items()}
    first, *others = positions.values()
    paths = [path for path in first if all(path in other for other in others)]
    if not paths:
        raise UsageError(
            f"Expected predictions for the same images, found none in common among "
            f"{', '.join(evaluations)}; test all of them on one folder."
        )
    common = {
        name: _subset(evaluation, [positions[name][path] for path in paths])
        for name, evaluation in evaluations.items()
    }
    label_names = [[e.class_names[i] for i in e.labels] for e in common.values()]
    for path, *labels in zip(paths, *label_names, strict=True):
        if len(set(labels)) > 1:
            raise UsageError(
                f"Expected one label for {path}, found {sorted(set(labels))}; "
                "compare predictions that were tested on the same labels."
            )
    every = set().union(*positions.values())
    return common, len(every) - len(paths)


def _numbered_paths(name: str, evaluation: Evaluation) -> Iterator[tuple[str, int]]:
    if len(set(evaluation.paths)) != len(evaluation.paths):
        raise UsageError(f"Expected each image once in {name}, found some paths twice.")
    return zip(evaluation.paths, range(len(evaluation.paths)), strict=True)


def _subset(evaluation: Evaluation, index: list[int]) -> Evaluation:
    return evaluate_logits(
        evaluation.labels[index],
        evaluation.log_probabilities[index],
        evaluation.class_names,
        [evaluation.paths[i] for i in index],
        confidence_level=evaluation.confidence_level,
    )
