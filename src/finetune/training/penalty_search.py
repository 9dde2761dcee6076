"""The penalty of the final layer, chosen by cross-validation: few solves, warm, and bounded work.

Penalties are tried from strong to weak, each from the solution of its neighbour. Where rows times
classes times features are many, the penalty is chosen on the principal axes that hold nearly all of
the variance, on fewer folds and by decades alone: with a thousand held-out images the mean over one
fold tells penalties apart as well as over five. The fit itself is on everything.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.tasks import categorical
from finetune.training.logistic_regression import LogisticProblem, logistic_problem, solve_logistic

# Penalties on the sum of the losses (scikit-learn's 1 / C), from strong to weak.
L2_GRID = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)
# Where nothing can be held out; good on photographs with one image a class and with twenty.
UNJUDGED_L2 = 1e1
FOLDS = 5
# Beyond so many images, and so many a class, a stratified part of them is enough.
MAX_IMAGES = 2000
MAX_IMAGES_A_CLASS = 20
# Rows times classes times features of all judged folds; beyond, the choice is made cheaper.
MAX_WORK = 2e9
VARIANCE_ENOUGH = 0.98


class PenaltyCurve(ABC):
    """Held-out NLL as a function of the penalty; with much work, fewer penalties are tried.

    Attributes:
        scores: mean negative log-likelihood of the held-out rows for each penalty tried.
        standard_errors: of these means.
    """

    much = False

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.scores: dict[float, float] = {}
        self.standard_errors: dict[float, float] = {}

    @abstractmethod
    def judged(self, l2: float) -> tuple[float, float]:
        """The score of one penalty, and its standard error."""

    def search(self, grid: Sequence[float], *, refine: bool) -> None:
        """Try penalties from strong to weak, then, if ``refine``, half decades around the best.

        Two in a row that are worse than the best so far end it; with much work, one that is so by
        more than two standard errors, and half decades are left out.
        """
        for l2 in sorted(map(float, grid), reverse=True):
            self._try(l2)
            values = list(self.scores.values())
            if len(values) > 2 and min(values[:-2]) < min(values[-2:]):
                break
            best = self._best()
            if self.much and values[-1] > self.scores[best] + 2 * self.standard_errors[best]:
                break
        if refine and not self.much:
            best = self._best()
            for l2 in (best * 10**0.5, best / 10**0.5):
                self._try(l2)

    def strongest_within_one_standard_error(self) -> float:
        """The penalty to take."""
        best = self._best()
        bound = self.scores[best] + self.standard_errors[best]
        return max(l2 for l2, nll in self.scores.items() if nll <= bound)

    def _best(self) -> float:
        return min(self.scores, key=lambda l2: self.scores[l2])

    def _try(self, l2: float) -> None:
        self.scores[l2], self.standard_errors[l2] = self.judged(l2)
        self.tell(f"penalty {l2:.3g}, held-out NLL {self.scores[l2]:.3f}")


class PenaltySearch(PenaltyCurve):
    """The curve of multinomial logistic regression.

    Args:
        rows: ``(N, r)``, standardised, in their principal axes by rising variance.
        labels: ``(N,)`` in ``[0, num_classes)``.
        weights: ``(N,)``, >= 0.
        groups: ``(N,)`` integers; rows of one group are never split between folds.
        num_classes: C.
        seed: of the assignment to folds.
        tell: gets a line for each penalty that was tried.
    """

    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        weights: Tensor,
        groups: Tensor,
        num_classes: int,
        *,
        seed: int = 0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(tell)
        images = len(torch.unique(groups))
        enough = max(MAX_IMAGES, MAX_IMAGES_A_CLASS * num_classes)
        part_of = stratified_parts(labels, groups, FOLDS * math.ceil(images / enough), seed)
        self.used = used = part_of < FOLDS
        self.num_classes = num_classes
        self.rows, self.labels, self.weights = rows[used], labels[used], weights[used]
        self.fold_of = part_of[used]
        self.much = FOLDS * self.rows.numel() * num_classes > MAX_WORK
        if self.much:
            variance = self.rows.square().sum(dim=0).cumsum(dim=0)
            dropped = int((variance < (1 - VARIANCE_ENOUGH) * variance[-1]).sum())
            self.rows = self.rows[:, dropped:]
        work = max(1, self.rows.numel() * num_classes)
        judged = min(FOLDS, max(1, int(MAX_WORK / work)))
        self.problems: dict[int, LogisticProblem] = {}
        for fold in torch.unique(self.fold_of[self.fold_of >= 0]).tolist()[:judged]:
            rest = self.fold_of != fold
            self.problems[fold] = logistic_problem(
                self.rows[rest], self.labels[rest], self.weights[rest], num_classes
            )
        self.solutions: dict[float, dict[int, Tensor]] = {}

    def held_out_logits(self, l2: float) -> Tensor:
        """Logits ``(N, C)`` of a penalty that was tried, of each row by the fold that left it out.

        NaN where none did: of a class with one group, or where the choice was made on fewer folds.
        """
        logits = self.rows.new_full((len(self.used), self.num_classes), math.nan)
        own = logits[self.used]
        for fold, solution in self.solutions.get(l2, {}).items():
            out = self.fold_of == fold
            own[out] = self._answers(out, solution)
        logits[self.used] = own
        return logits

    def _answers(self, out: Tensor, solution: Tensor) -> Tensor:
        return self.rows[out] @ solution[:, :-1].T + solution[:, -1]

    def _near(self, l2: float) -> dict[int, Tensor]:
        """The folds' solutions for the penalty nearest to this one."""
        if not self.solutions:
            return {}
        return self.solutions[min(self.solutions, key=lambda tried: abs(math.log(tried / l2)))]

    def judged(self, l2: float) -> tuple[float, float]:
        """Fit all judged folds, each from its solution for the penalty nearest to this one."""
        near = self._near(l2)
        losses = torch.zeros(len(self.rows), dtype=torch.float64)
        judged = torch.zeros(len(self.rows), dtype=torch.bool)
        solved: dict[int, Tensor] = {}
        for fold, problem in self.problems.items():
            # Looser than the final fit: the NLL is flat around the optimum. Not looser than this:
            # a solution that stays near a stronger penalty's makes a weak one look good.
            solved[fold] = solve_logistic(problem, l2, tolerance=3e-3, start=near.get(fold))
            out = self.fold_of == fold
            losses[out] = categorical.losses(self._answers(out, solved[fold]), self.labels[out])
            judged |= out
        self.solutions[l2] = solved
        weights = self.weights[judged] / self.weights[judged].sum()
        mean = float(weights @ losses[judged])
        return mean, float((weights * (losses[judged] - mean)).norm())


def stratified_parts(labels: Tensor, groups: Tensor, parts: int, seed: int) -> Tensor:
    """Part of each row, whole groups only; -1 (never held out) where a class has one group."""
    generator = np.random.default_rng(seed)
    _, first, group_of = np.unique(groups.cpu().numpy(), return_index=True, return_inverse=True)
    group_labels = labels.numpy()[first]
    part_of_group = np.full(len(first), -1)
    for label in np.unique(group_labels):
        members = generator.permutation(np.flatnonzero(group_labels == label))
        if len(members) > 1:
            dealt = int((part_of_group >= 0).sum())
            part_of_group[members] = (dealt + np.arange(len(members))) % parts
    return torch.from_numpy(part_of_group[group_of])


def all_dealt(fold_of: Tensor, groups: Tensor) -> Tensor:
    """Parts of all rows: those never held out go to the parts in turn, whole groups again."""
    waiting = fold_of < 0
    numbers = torch.unique(groups[waiting], return_inverse=True)[1]
    dealt = fold_of.clone()
    dealt[waiting] = (numbers % FOLDS).to(dealt)
    return dealt
