"""How the error falls with the number of images: a power law, and what more of them would bring.

Errors of fits on n images follow ``a + b * n ** -c`` closely over the range that matters (Cortes et
al., Learning curves: asymptotic values and rate of convergence, 1994; Hestness et al., Deep
learning scaling is predictable, empirically, 2017). The band comes from images drawn again with
replacement, as every other interval here (Efron and Tibshirani 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.intervals import bootstrap_counts, percentile_interval

Floats = NDArray[np.float64]
EXPONENTS = np.linspace(0.05, 2.0, 40)
# How fast an error may fall at most is not known: with a fixed number of parameters as 1 / n, where
# classes are far apart faster. So each drawing gets a limit of its own between these.
FASTEST = 1.0, 2.0
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much the accuracy rises, a share of all images, and a band of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """Errors of fits on several numbers of images, judged on the same images each time.

    Attributes:
        sizes: on how many images was fitted, rising, at least three, ``(S,)``.
        wrong: for each judged image the share of fits that got it wrong, ``(N, S)`` in [0, 1].
        groups: images of equal numbers are drawn together, ``(N,)``; None: each alone.

    Examples:
        >>> import numpy
        >>> sizes = (25, 50, 100, 200)
        >>> errors = 0.05 + 2.0 / numpy.array(sizes)
        >>> wrong = (numpy.arange(1000)[:, None] < 1000 * errors).astype(float)
        >>> gain = LearningCurve(sizes, wrong).gain(now=200, more=50)
        >>> round(gain.value, 3), gain.low <= gain.value <= gain.high
        (0.002, True)
    """

    sizes: Sequence[int]
    wrong: Floats
    groups: NDArray[np.int64] | None = None

    @cached_property
    def errors(self) -> Floats:
        """Measured, ``(S,)``."""
        mean: Floats = self.wrong.mean(axis=0)
        return mean

    @cached_property
    def _laws(self) -> tuple[Floats, Floats, Floats]:
        """``a, b, c`` of all images, then of each time they were drawn again."""
        counts = bootstrap_counts(self.groups, len(self.wrong))
        drawn = counts @ self.wrong / counts.sum(axis=1, keepdims=True)
        limits = np.random.default_rng(0).uniform(*FASTEST, size=len(drawn))
        return power_laws(
            np.asarray(self.sizes, dtype=np.float64),
            np.vstack([self.errors, drawn]),
            np.append(np.mean(FASTEST), limits),
        )

    def gain(self, now: int, more: int) -> Gain:
        """What the accuracy of a fit on ``now`` images gains by as many ``more`` like them."""
        _, b, c = self._laws
        gains = b * (float(now) ** -c - float(now + more) ** -c)
        low, high = percentile_interval(gains[1:], confidence_level=LEVEL)
        return Gain(float(gains[0]), low, high)

    def images_for(self, now: int, accuracy: float) -> int | None:
        """How many more images raise the accuracy of ``now`` by so much; None: none ever."""
        _, b, c = (float(values[0]) for values in self._laws)
        left = b * float(now) ** -c - accuracy
        if left <= 0:
            return None
        wanted = np.log(b / left) / c
        return int(np.ceil(np.exp(wanted) - now)) if wanted < 30 else None


def power_laws(sizes: Floats, errors: Floats, limits: Floats) -> tuple[Floats, Floats, Floats]:
    """The best ``a + b * n ** -c`` by least squares, ``a, b >= 0``, for each row of errors.

    Args:
        sizes: ``(S,)``.
        errors: ``(B, S)``.
        limits: of ``c`` in each row, ``(B,)``, at least 0.05.

    Returns:
        ``a``, ``b`` and ``c``, each ``(B,)``; ``c`` is one of 40 from 0.05 to 2.
    """
    mean = errors.mean(axis=1)
    least = np.full(len(errors), np.inf)
    a, b, c = (np.zeros(len(errors)) for _ in range(3))
    for exponent in EXPONENTS:
        powers = sizes**-exponent
        varying = powers - powers.mean()
        slope = np.maximum(errors @ varying / (varying @ varying), 0)
        rest = mean - slope * powers.mean()
        # Below zero no error can fall: then the law goes to it.
        slope = np.where(rest < 0, errors @ powers / (powers @ powers), slope)
        rest = np.maximum(rest, 0)
        missed = ((errors - rest[:, None] - slope[:, None] * powers) ** 2).sum(axis=1)
        better = (missed < least) & (exponent <= limits + 1e-9)
        least[better], a[better] = missed[better], rest[better]
        b[better], c[better] = slope[better], exponent
    return a, b, c
