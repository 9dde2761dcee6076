"""Final layers fitted to more and more of the images: what each number of them gets wrong.

Images are dealt to folds; of the other folds' images nested parts are fitted to, in random order,
and the fold is judged. So every image is judged at every size by layers that have not seen it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.tasks import categorical
from finetune.training.linear_probe import fit_probe
from finetune.training.logistic_regression import logistic_problem, near_enough, solve_logistic
from finetune.training.penalty_search import FOLDS, stratified_parts
from finetune.training.probe_rows import ProbeRows

# Fewer than these shares bend the curve: there whole classes are missing.
SIZES, SMALLEST = 5, 0.4
REPEATS = 4
# Beyond so many images, so many at random are looked at.
MOST_IMAGES = 4000


class NestedAnswers(NamedTuple):
    """What was judged.

    Attributes:
        sizes: on how many images was fitted, rising.
        wrong: of each judged image the share of fits that got it wrong, ``(N, S)``.
        groups: of these images, ``(N,)``.
    """

    sizes: tuple[int, ...]
    wrong: NDArray[np.float64]
    groups: NDArray[np.int64]


def nested_answers(
    features: Tensor, labels: Tensor, groups: Tensor, *, repeats: int = REPEATS, seed: int = 0
) -> NestedAnswers:
    """Fit to nested parts of the images, and judge the others.

    Args:
        features: ``(N, D)``, of a network that has not learnt from these images.
        labels: ``(N,)``, at least two classes.
        groups: ``(N,)`` integers; no group is both learnt from and judged by.
        repeats: how often images are dealt anew.
        seed: of the folds and the order.

    Returns:
        Of images whose class has two groups at least; the others are never held out.
    """
    generator = torch.Generator().manual_seed(seed)
    used = torch.randperm(len(labels), generator=generator)[:MOST_IMAGES]
    features, groups = features[used], groups[used]
    present, labels = torch.unique(labels[used], return_inverse=True)
    rows = ProbeRows.of(features, None, groups).rows
    l2 = fit_probe(features, labels, len(present), groups=groups).l2
    sizes: tuple[int, ...] = ()
    wrong: Tensor | None = None
    judged = stratified_parts(labels, groups, FOLDS, seed) >= 0
    for repeat in range(repeats):
        fold_of = stratified_parts(labels, groups, FOLDS, seed + repeat)
        if wrong is None:
            smallest_pool = min(int((fold_of != fold).sum()) for fold in range(FOLDS))
            sizes = nested_sizes(smallest_pool, len(present))
            wrong = torch.zeros(len(labels), len(sizes), dtype=torch.float64)
        for fold in range(FOLDS):
            out = fold_of == fold
            pool = (~out).nonzero()[:, 0]
            pool = pool[torch.randperm(len(pool), generator=generator)]
            for column, size in enumerate(sizes):
                named = _answers(rows, labels, pool[:size], out, l2)
                wrong[out, column] += (named != labels[out]) / repeats
    assert wrong is not None
    return NestedAnswers(sizes, wrong[judged].numpy(), groups[judged].numpy())


def nested_sizes(pool: int, classes: int) -> tuple[int, ...]:
    """Up to five sizes in equal ratios, two a class at least, up to the whole pool."""
    least = min(pool, max(2 * classes, round(SMALLEST * pool)))
    ratio = math.log(pool / least) / (SIZES - 1)
    return tuple(sorted({round(least * math.exp(ratio * step)) for step in range(SIZES)}))


def _answers(rows: Tensor, labels: Tensor, learnt: Tensor, out: Tensor, l2: float) -> Tensor:
    """The classes that the rows held out are given by a fit to some others."""
    known, dense = torch.unique(labels[learnt], return_inverse=True)
    if len(known) < 2:
        return known.expand(int(out.sum()))
    problem = logistic_problem(rows[learnt], dense, torch.ones(len(learnt)), len(known))
    found = solve_logistic(problem, l2, tolerance=near_enough(l2))
    return known[categorical.likeliest(rows[out] @ found[:, :-1].T + found[:, -1])]
