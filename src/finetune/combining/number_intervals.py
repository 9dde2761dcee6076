"""Intervals about numbers that hold the truth with a chosen probability, for any model.

Split conformal prediction with absolute errors as scores: half of the width is the ``ceil((n + 1)
(1 - alpha))``-th smallest error of n held-out images. If a new image is exchangeable with those n,
its interval misses the truth with probability at most alpha.

Source: Lei et al., Distribution-free predictive inference for regression, 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from finetune.combining.conformal import conformal_quantile
from finetune.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class IntervalRule:
    """How wide an interval is.

    Attributes:
        alpha: accepted share of intervals without the true number, in (0, 1).
        half_width: in the user's unit.
        images: n.
    """

    alpha: float
    half_width: float
    images: int


def fit_intervals(errors: Tensor, *, alpha: float) -> IntervalRule:
    """The rule for absolute errors ``(n,)`` of held-out images.

    Raises:
        CalibrationError: alpha outside (0, 1), or too few images for it.
    """
    half_width = conformal_quantile(errors, alpha)
    if math.isinf(half_width):
        raise CalibrationError(
            f"Expected at least {math.ceil(round(1 / alpha - 1, 9))} held-out images for intervals "
            f"that miss at most {alpha:g} of the numbers, found {len(errors)}; hold out more, or "
            "give a larger --conformal."
        )
    return IntervalRule(alpha, half_width, len(errors))
