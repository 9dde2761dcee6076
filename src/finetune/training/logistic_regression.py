"""Multinomial logistic regression with an L2 penalty: the one optimum, by truncated Newton steps.

The problem is convex, so there is no learning rate, no schedule and no number of epochs. Every
Newton system is solved by preconditioned conjugate gradients over all classes at once; gradients
near the optimum are float64, and so is the optimum, while everything rougher only needs float32.
On features of images L-BFGS needed 2 to 10 times as many passes over the rows to come as near to
the optimum, because the classes are almost separable there and the curvature tiny.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.tasks import categorical

MAX_NEWTON_STEPS = 100
MAX_CONJUGATE_STEPS = 250
# Rows at a time: bounds the memory of many rows times many classes.
CHUNK = 4096
# Down to this tolerance float32 gradients do.
SINGLE_TOLERANCE = 1e-3
# Rows whose curvature is kept whole for each class, where rows and classes are many times as many.
HEAVY_ROWS = 16
MANY_CLASSES = 64


class LogisticProblem(NamedTuple):
    """Minimise ``sum_i w_i * nll_i + l2 / 2 * ||weight||^2``; the bias carries no penalty.

    Attributes:
        rows: float64 ``(N, D + 1)``, the last column all ones, for the bias.
        labels: int64 ``(N,)`` in ``[0, num_classes)``.
        weights: float64 ``(N,)``, >= 0.
        num_classes: C.
    """

    rows: Tensor
    labels: Tensor
    weights: Tensor
    num_classes: int

    def single(self) -> LogisticProblem:
        """The same in float32."""
        return self._replace(rows=self.rows.float(), weights=self.weights.float())


class _Point(NamedTuple):
    """The objective at some coefficients: its value, gradient, and probabilities in float32."""

    loss: float
    gradient: Tensor
    probabilities: Tensor


def logistic_problem(
    rows: Tensor, labels: Tensor, weights: Tensor, num_classes: int
) -> LogisticProblem:
    """The problem for rows ``(N, D)``; adds the column of the bias."""
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    return LogisticProblem(
        torch.cat([rows.double(), ones], dim=1), labels, weights.double(), num_classes
    )


def solve_logistic(
    problem: LogisticProblem,
    l2: float,
    *,
    tolerance: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Coefficients ``(C, D + 1)`` in float64, the bias last, centred over the classes.

    Args:
        problem: rows, labels and weights.
        l2: penalty on the sum of the losses, > 0 (scikit-learn's ``1 / C``).
        tolerance: norm of the gradient, relative to the square root of the total weight, to stop.
            Default: 1e-8, and 1e-6 with many classes, where the last two digits take a third of
            the time and no probability moves by 1e-4 for them.
        start: coefficients to start from; the optimum is the same, the way there shorter.
    """
    many = problem.num_classes >= MANY_CLASSES
    if tolerance is None:
        tolerance = 1e-6 if many else 1e-8
    if start is None and many and tolerance < SINGLE_TOLERANCE:
        # Down from stronger penalties: straight to a weak one takes several times the steps. The
        # optimum of a fold is no better start, being sure and wrong about the rows left out.
        for factor in (1e3, 1e2, 1e1):
            rough = near_enough(factor * l2)
            start = solve_logistic(problem, factor * l2, tolerance=rough, start=start)
    single = problem.single()
    coefficients = torch.zeros(problem.num_classes, problem.rows.shape[1])
    if start is not None:
        coefficients = start.float()
    coefficients = _descend(single, single, l2, max(tolerance, SINGLE_TOLERANCE), coefficients)
    coefficients = coefficients.double()
    if tolerance < SINGLE_TOLERANCE:
        coefficients = _descend(problem, single, l2, tolerance, coefficients)
    # Softmax does not see a constant added to all classes; the penalty fixes the weights' one.
    coefficients[:, -1] -= coefficients[:, -1].mean()
    return coefficients


def near_enough(l2: float) -> float:
    """The tolerance at which the objective is within 1e-4 nats an image of its optimum.

    The penalty makes the problem strongly convex: what is left is at most ``|gradient|^2 / 2 l2``.
    At least 3e-3, where time goes; at most 3e-2, for the bias carries no penalty.
    """
    return min(3e-2, max(3e-3, math.sqrt(2e-4 * l2)))


def _descend(
    problem: LogisticProblem,
    single: LogisticProblem,
    l2: float,
    tolerance: float,
    coefficients: Tensor,
) -> Tensor:
    """Newton steps in the precision of ``problem``, their directions from ``single``."""
    target = tolerance * float(problem.weights.sum()) ** 0.5
    rounding: float = torch.finfo(problem.rows.dtype).eps ** 0.75
    point = _evaluate(problem, l2, coefficients)
    first_norm = None
    for _ in range(MAX_NEWTON_STEPS):
        norm = float(point.gradient.norm())
        first_norm = first_norm or norm
        if norm <= target:
            break
        # Rough directions far from the optimum, finer ones near it (Dembo and Steihaug 1983).
        accuracy = min(0.1, math.sqrt(norm / first_norm))
        right = (-point.gradient / norm).float()
        step = _newton_direction(single, l2, point.probabilities, right, accuracy)
        step = step.to(coefficients) * norm
        slope = float((point.gradient * step).sum())
        length = 1.0
        while True:
            candidate = _evaluate(problem, l2, coefficients + length * step)
            allowed = 1e-4 * length * slope + rounding * abs(point.loss)
            if candidate.loss <= point.loss + allowed:
                break
            if length < 1e-6:  # rounding is all that is left
                return coefficients
            length /= 2
        coefficients, point = coefficients + length * step, candidate
    return coefficients


def _evaluate(problem: LogisticProblem, l2: float, coefficients: Tensor) -> _Point:
    gradient = l2 * coefficients
    gradient[:, -1] = 0.0
    loss = 0.5 * float((gradient * coefficients).sum(dtype=torch.float64))
    probabilities = torch.empty(problem.num_classes, len(problem.rows), dtype=torch.float32)
    for chunk in _chunks(len(problem.rows)):
        rows, labels = problem.rows[chunk], problem.labels[None, chunk]
        weights = problem.weights[None, chunk]
        change = categorical.log_probabilities((coefficients @ rows.T).T).T
        loss -= float((weights * change.gather(0, labels)).sum(dtype=torch.float64))
        change.exp_()
        probabilities[:, chunk] = change
        change.scatter_add_(0, labels, torch.full_like(weights, -1.0)).mul_(weights)
        gradient.addmm_(change, rows)
    return _Point(loss, gradient, probabilities)


def _newton_direction(
    problem: LogisticProblem, l2: float, p: Tensor, right: Tensor, accuracy: float
) -> Tensor:
    """Solves ``H x = right`` in float32, by preconditioned conjugate gradients."""
    weights = problem.weights[None]
    precondition = _Preconditioner(problem.rows, weights * p * (1 - p), l2)

    def times_hessian(direction: Tensor) -> Tensor:
        product = l2 * direction
        product[:, -1] = 0.0
        for chunk in _chunks(len(problem.rows)):
            rows, own = problem.rows[chunk], p[:, chunk]
            change = (direction @ rows.T).mul_(own)
            change.addcmul_(own, change.sum(dim=0, keepdim=True), value=-1)
            product.addmm_(change.mul_(weights[:, chunk]), rows)
        return product

    residual = right.clone()
    solution = torch.zeros_like(residual)
    direction = precondition(residual)
    energy = float((residual * direction).sum())
    stop = accuracy * float(residual.norm())
    for _ in range(MAX_CONJUGATE_STEPS):
        product = times_hessian(direction)
        along = float((direction * product).sum())
        if along <= 0:
            break
        solution += energy / along * direction
        residual -= energy / along * product
        if float(residual.norm()) <= stop:
            break
        preconditioned = precondition(residual)
        previous, energy = energy, float((residual * preconditioned).sum())
        direction = preconditioned + energy / previous * direction
    return solution


class _Preconditioner:
    """Each class's own part of the Hessian: its diagonal, and the heaviest rows whole (Woodbury).

    Near the optimum a class's curvature comes from few rows, those that it holds or is taken for,
    which is why so few of them save more than half of the steps.
    """

    def __init__(self, rows: Tensor, curvature: Tensor, l2: float) -> None:
        self.heavy: Tensor | None = None
        if len(rows) >= 32 * HEAVY_ROWS and len(curvature) >= MANY_CLASSES:
            top, which = curvature.topk(HEAVY_ROWS, dim=1)
            curvature = curvature.scatter(1, which, 0.0)
            self.heavy = rows[which].mul_(top.sqrt()[:, :, None])  # (C, k, D + 1)
        diagonal = torch.zeros(len(curvature), rows.shape[1])
        for chunk in _chunks(len(rows)):
            diagonal.addmm_(curvature[:, chunk], rows[chunk].square())
        diagonal[:, :-1] += l2
        self.inverse = 1 / diagonal.clamp(min=1e-8)
        if self.heavy is not None:
            inner = (self.heavy * self.inverse[:, None]) @ self.heavy.mT
            inner.diagonal(dim1=1, dim2=2).add_(1.0)
            self.factor = torch.linalg.cholesky(inner)

    def __call__(self, residual: Tensor) -> Tensor:
        scaled = self.inverse * residual
        if self.heavy is None:
            return scaled
        inside = torch.cholesky_solve(self.heavy @ scaled[:, :, None], self.factor)
        return scaled - self.inverse * (self.heavy.mT @ inside)[:, :, 0]


def _chunks(count: int) -> Iterator[slice]:
    return (slice(begin, begin + CHUNK) for begin in range(0, count, CHUNK))
