"""Multinomial logistic regression with an L2 penalty: the one optimum, by truncated Newton steps.

The problem is convex, so there is no learning rate, no schedule and no number of epochs. Every
Newton system is solved by conjugate gradients, preconditioned with the diagonal of the Hessian at
the current point; gradients are float64, and so is the optimum, while the directions only need
float32. On features of pictures L-BFGS needed 3 to 10 times as many passes over the rows to come
as near to the optimum, because the classes are almost separable there and the curvature tiny.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_NEWTON_STEPS = 100
MAX_CONJUGATE_STEPS = 250


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

    def log_probabilities(self, coefficients: Tensor) -> Tensor:
        """``(N, C)`` for coefficients ``(D + 1, C)``."""
        return (self.rows @ coefficients).log_softmax(dim=1)

    def nll(self, log_probabilities: Tensor) -> float:
        """The weighted sum of the losses."""
        picked = log_probabilities.gather(1, self.labels[:, None])[:, 0]
        return float(-(self.weights @ picked))

    def residuals(self, probabilities: Tensor) -> Tensor:
        """Weighted probabilities minus targets, ``(N, C)``."""
        targets = torch.full_like(probabilities, -1.0)
        return probabilities.scatter_add(1, self.labels[:, None], targets) * self.weights[:, None]


def logistic_problem(
    rows: Tensor, labels: Tensor, weights: Tensor, num_classes: int
) -> LogisticProblem:
    """The problem for rows ``(N, D)``; adds the column of the bias."""
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    return LogisticProblem(
        torch.cat([rows.double(), ones], dim=1), labels, weights.double(), num_classes
    )


def solve_logistic(
    problem: LogisticProblem, l2: float, *, tolerance: float = 1e-8, start: Tensor | None = None
) -> Tensor:
    """Coefficients ``(D + 1, C)``, the bias in the last row, centred over the classes.

    Args:
        problem: rows, labels and weights.
        l2: penalty on the sum of the losses, > 0 (scikit-learn's ``1 / C``).
        tolerance: norm of the gradient, relative to the square root of the total weight, to stop.
        start: coefficients to start from; the optimum is the same, the way there shorter.
    """
    width = problem.rows.shape[1]
    penalty = torch.full((width, 1), l2, dtype=torch.float64)
    penalty[-1] = 0.0
    coefficients = torch.zeros(width, problem.num_classes, dtype=torch.float64)
    if start is not None:
        coefficients = start.clone()
    target = tolerance * float(problem.weights.sum()) ** 0.5
    curvature = _Curvature(problem, penalty)
    log_probabilities = problem.log_probabilities(coefficients)
    loss = problem.nll(log_probabilities) + _half_square(penalty, coefficients)
    first_norm = None
    for _ in range(MAX_NEWTON_STEPS):
        probabilities = log_probabilities.exp()
        gradient = problem.rows.T @ problem.residuals(probabilities) + penalty * coefficients
        norm = float(gradient.norm())
        first_norm = first_norm or norm
        if norm <= target:
            break
        # Rough directions far from the optimum, finer ones near it (Dembo and Steihaug 1983).
        accuracy = min(0.1, math.sqrt(norm / first_norm))
        step = curvature.solve(probabilities, -gradient / norm, accuracy).double() * norm
        slope = float((gradient * step).sum())
        length = 1.0
        while True:
            candidate = coefficients + length * step
            log_probabilities = problem.log_probabilities(candidate)
            candidate_loss = problem.nll(log_probabilities) + _half_square(penalty, candidate)
            if candidate_loss <= loss + 1e-4 * length * slope + 1e-12 * abs(loss):
                break
            if length < 1e-6:  # rounding is all that is left
                return _centred(coefficients)
            length /= 2
        coefficients, loss = candidate, candidate_loss
    return _centred(coefficients)


class _Curvature:
    """Newton systems ``H x = b`` in float32, by preconditioned conjugate gradients."""

    def __init__(self, problem: LogisticProblem, penalty: Tensor) -> None:
        self.rows = problem.rows.float()
        self.squares = self.rows.square()
        self.weights = problem.weights.float()[:, None]
        self.penalty = penalty.float()

    def solve(self, probabilities: Tensor, right: Tensor, accuracy: float) -> Tensor:
        p, residual = probabilities.float(), right.float()
        diagonal = self.squares.T @ (self.weights * p * (1 - p)) + self.penalty
        diagonal = diagonal.clamp(min=1e-8)
        solution = torch.zeros_like(residual)
        direction = residual / diagonal
        energy = float((residual * direction).sum())
        stop = accuracy * float(residual.norm())
        for _ in range(MAX_CONJUGATE_STEPS):
            product = self._times(p, direction)
            along = float((direction * product).sum())
            if along <= 0:
                break
            solution += energy / along * direction
            residual -= energy / along * product
            if float(residual.norm()) <= stop:
                break
            preconditioned = residual / diagonal
            previous, energy = energy, float((residual * preconditioned).sum())
            direction = preconditioned + energy / previous * direction
        return solution

    def _times(self, p: Tensor, direction: Tensor) -> Tensor:
        change = self.rows @ direction
        change = p * (change - (p * change).sum(dim=1, keepdim=True)) * self.weights
        return self.rows.T @ change + self.penalty * direction


def _half_square(penalty: Tensor, coefficients: Tensor) -> float:
    return float(0.5 * (penalty * coefficients.square()).sum())


def _centred(coefficients: Tensor) -> Tensor:
    # Softmax does not see a constant added to all classes; the penalty fixes the weights' one.
    coefficients[-1] -= coefficients[-1].mean()
    return coefficients
