"""Which of several classifiers is really better, judged on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from finetune.errors import UsageError
from finetune.evaluation.judge import subset, with_names
from finetune.evaluation.judgement import Judgement, Score
from finetune.evaluation.paired import accuracy_difference


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two classifiers on the same images.

    Attributes:
        first_only, second_only: images that only one of the two gets right.
        difference: figure of the first minus that of the second; of accuracies in ``[-1, 1]``.
        interval: paired bootstrap interval of the difference.
        p_value: of "both are equally good": of accuracies McNemar's exact test, else, and where
            images are of groups, by bootstrap.
        adjusted_p_value: the same, after Holm's correction for all pairs that were looked at.
        figure: of the first, that is compared.
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
    figure: Score

    def is_real(self, level: float = 0.05) -> bool:
        """Whether chance alone would make such a difference in less than ``level`` of all cases."""
        return self.adjusted_p_value < level

    def verdict(self, level: float = 0.05) -> str:
        """One sentence for people."""
        forward = (self.difference >= 0) == self.figure.rises
        better, worse = (self.first, self.second) if forward else (self.second, self.first)
        low, high = self.interval if self.difference >= 0 else _turned(self.interval)
        share = self.figure.kind == "share"
        apart, *ends = (
            f"{100 * value:.1f}" if share else f"{value:.4g}"
            for value in (abs(self.difference), low, high)
        )
        unit = " points" if share else ""
        name = "" if self.figure.name == "accuracy" else f" of {self.figure.name}"
        figures = f"{apart}{unit}{name} [{', '.join(ends)}]"
        if self.is_real(level):
            return f"{better} is better than {worse} by {figures}."
        return f"{self.first} and {self.second} are not distinguishable: {figures} apart."


def _turned(interval: tuple[float, float]) -> tuple[float, float]:
    return -interval[1], -interval[0]


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Evaluations on the images that all have in common, best first, and every pair of them."""

    evaluations: dict[str, Judgement]
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


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down p-values, in the order given: valid however the tests depend."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def compare_pair(first: tuple[str, Judgement], second: tuple[str, Judgement]) -> PairedComparison:
    """Compare two names with their answers to the same images in the same order."""
    (name, ours), (other_name, theirs) = first, second
    if len(ours.paths) != len(theirs.paths):
        raise UsageError(
            f"Expected answers to the same images, found {len(ours.paths)} of {name} and "
            f"{len(theirs.paths)} of {other_name}."
        )
    found = ours.against(theirs)
    return PairedComparison(
        first=name,
        second=other_name,
        images=len(ours.paths),
        first_only=found.first_only,
        second_only=found.second_only,
        difference=found.value,
        interval=found.interval,
        p_value=found.p_value,
        adjusted_p_value=found.p_value,
        figure=ours.leading[0],
    )


def compare_all(evaluations: Mapping[str, Judgement]) -> Leaderboard:
    """Rank evaluations by their leading figure on their common images and compare each with each.

    Images are matched by path. Images that not all evaluations know are left out and counted.

    Raises:
        UsageError: fewer than two evaluations, of different tasks, no image in common, or labels
            that disagree.
    """
    if len(evaluations) < 2:
        raise UsageError(f"Expected at least two sets of predictions, found {len(evaluations)}.")
    tasks = {evaluation.task.name for evaluation in evaluations.values()}
    if len(tasks) > 1:
        raise UsageError(
            f"Expected answers of one task to compare, found {' and '.join(sorted(tasks))}; "
            "compare those of one task."
        )
    common, left_out = _on_common_images(evaluations)
    leads = {name: evaluation.leading[0] for name, evaluation in common.items()}
    order = sorted(leads, key=lambda n: -leads[n].value if leads[n].rises else leads[n].value)
    ranked = {name: common[name] for name in order}
    pairs = [compare_pair((a, ranked[a]), (b, ranked[b])) for a, b in combinations(ranked, 2)]
    adjusted = holm_correction([pair.p_value for pair in pairs])
    return Leaderboard(
        ranked,
        tuple(replace(p, adjusted_p_value=q) for p, q in zip(pairs, adjusted, strict=True)),
        left_out,
    )


def compare_classes(
    first: tuple[str, Judgement], second: tuple[str, Judgement]
) -> dict[str, PairedComparison]:
    """Compare two, of the same images in the same order, by each class or label alone.

    p-values are those of :func:`finetune.evaluation.paired.accuracy_difference`, corrected for
    their number (Holm).
    """
    (name, ours), (other_name, theirs) = first, second
    of_theirs = {each.name: each.right for each in theirs.rights()}
    groups = theirs.groups if ours.groups is None else ours.groups
    found = {
        part: accuracy_difference(
            right, of_theirs[part], groups=None if groups is None else groups[own]
        )
        for part, own, right in ours.rights()
    }
    sizes = {part: len(one) for part, one in of_theirs.items()}
    adjusted = holm_correction([each.p_value for each in found.values()])
    return {
        part: PairedComparison(
            first=name,
            second=other_name,
            images=sizes[part],
            first_only=each.first_only,
            second_only=each.second_only,
            difference=each.value,
            interval=each.interval,
            p_value=each.p_value,
            adjusted_p_value=p_value,
            figure=Score("accuracy", float("nan")),
        )
        for (part, each), p_value in zip(found.items(), adjusted, strict=True)
    }


def _on_common_images(
    evaluations: Mapping[str, Judgement],
) -> tuple[dict[str, Judgement], int]:
    names = next(iter(evaluations.values())).class_names
    evaluations = {
        name: with_names(e, names) if sorted(e.class_names) == sorted(names) else e
        for name, e in evaluations.items()
    }
    positions = {name: dict(_numbered_paths(name, e)) for name, e in evaluations.items()}
    first, *others = positions.values()
    paths = [path for path in first if all(path in other for other in others)]
    if not paths:
        raise UsageError(
            f"Expected predictions for the same images, found none in common among "
            f"{', '.join(evaluations)}; test all of them on one folder."
        )
    common = {
        name: subset(evaluation, [positions[name][path] for path in paths])
        for name, evaluation in evaluations.items()
    }
    label_names = [[e.shown(i).label for i in range(len(paths))] for e in common.values()]
    for path, *labels in zip(paths, *label_names, strict=True):
        if len(set(labels)) > 1:
            raise UsageError(
                f"Expected one label for {path}, found {sorted(set(labels))}; "
                "compare predictions that were tested on the same labels."
            )
    every = set().union(*positions.values())
    return common, len(every) - len(paths)


def _numbered_paths(name: str, evaluation: Judgement) -> Iterator[tuple[str, int]]:
    if len(set(evaluation.paths)) != len(evaluation.paths):
        raise UsageError(f"Expected each image once in {name}, found some paths twice.")
    return zip(evaluation.paths, range(len(evaluation.paths)), strict=True)
