"""Probabilities of several labels an image, scaled label by label: Platt's method with a prior.

Platt, Probabilistic outputs for support vector machines, 1999: ``a z + b`` instead of a logit z.
On the few images that have a label its own a and b are chance, so they are drawn to what is common:
the logarithm of a to that of the one factor for all labels, b to 0. The prior is that a is within a
factor of 2.7 of the common one, and b within 2 nats of 0, for 19 labels of 20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize
from torch import Tensor

from finetune.tasks import categorical
from finetune.tasks.multilabel import MULTILABEL

FACTOR, SHIFT = 0.5, 1.0  # standard deviations of log a and of b
MOST = 7.0  # of the absolute logarithm of a


@dataclass(frozen=True, slots=True)
class LabelScaling:
    """``factors`` above 0 and ``shifts`` in nats, ``(K,)`` each, and the NLL with them."""

    factors: tuple[float, ...]
    shifts: tuple[float, ...]
    nll_after: float

    def apply(self, outputs: Tensor) -> Tensor:
        """``a z + b`` of logits ``(N, K)``, in float64; the order of a label's images stays."""
        given = outputs.double()
        return given * given.new_tensor(self.factors) + given.new_tensor(self.shifts)

    def undo(self, scaled: Tensor) -> Tensor:
        """The logits that :meth:`apply` made these of, in float64."""
        given = scaled.double()
        return (given - given.new_tensor(self.shifts)) / given.new_tensor(self.factors)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelScaling:
        """From plain values, as a checkpoint has them."""
        return cls(tuple(values["factors"]), tuple(values["shifts"]), float(values["nll_after"]))


def fit_label_scaling(outputs: Tensor, targets: Tensor, *, temperature: float) -> LabelScaling:
    """The likeliest factor and shift of each label, given what is known and the prior.

    Args:
        outputs, targets: ``(N, K)``, of held-out images; NaN is not known.
        temperature: the one that fits all labels best; its inverse is the common factor.
    """
    given, truth = outputs.detach().cpu().double().numpy(), targets.cpu().double().numpy()
    centre = -math.log(temperature)
    found = [
        _of_label(z[known], t[known], centre)
        for z, t, known in zip(given.T, truth.T, ~np.isnan(truth).T, strict=True)
    ]
    factors, shifts = zip(*found, strict=True)
    scaling = LabelScaling(tuple(factors), tuple(shifts), nll_after=math.inf)
    rows = MULTILABEL.rows(scaling.apply(outputs.cpu()), targets.cpu())
    nll = float(categorical.losses(*rows).mean())
    return replace(scaling, nll_after=nll)


def _of_label(outputs: np.ndarray, truth: np.ndarray, centre: float) -> tuple[float, float]:
    signs = 2 * truth - 1

    def cost(values: np.ndarray) -> tuple[float, np.ndarray]:
        log_factor, shift = values
        factor = math.exp(log_factor)
        margins = signs * (factor * outputs + shift)
        missing = np.exp(-np.logaddexp(0, margins))  # probability of the other answer
        slopes = -signs * missing
        away = log_factor - centre
        value = np.logaddexp(0, -margins).sum() + away**2 / (2 * FACTOR**2)
        gradient = (
            slopes @ outputs * factor + away / FACTOR**2,
            slopes.sum() + shift / SHIFT**2,
        )
        return float(value + shift**2 / (2 * SHIFT**2)), np.array(gradient)

    bounds = [(centre - MOST, centre + MOST), (None, None)]
    best = minimize(cost, [centre, 0.0], jac=True, bounds=bounds, method="L-BFGS-B")
    return math.exp(float(best.x[0])), float(best.x[1])
