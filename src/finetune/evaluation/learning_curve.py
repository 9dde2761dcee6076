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
# With a fixed number of parameters the excess error falls as 1 / n at best.
EXPONENTS = np.linspace(0.05, 1.0, 20)
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
        return power_laws(np.asarray(self.sizes, dtype=np.float64), np.vstack([self.errors, drawn]))

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


def power_laws(sizes: Floats, errors: Floats) -> tuple[Floats, Floats, Floats]:
    """The best ``a + b * n ** -c`` by least squares, ``a, b >= 0``, for each row of errors.

    Args:
        sizes: ``(S,)``.
        errors: ``(B, S)``.

    Returns:
        ``a``, ``b`` and ``c``, each ``(B,)``; ``c`` is one of 20 from 0.05 to 1.
    """
    best: tuple[Floats, ...] | None = None
    mean = errors.mean(axis=1)
    for c in EXPONENTS:
        powers = sizes**-c
        varying = powers - powers.mean()
        b = np.maximum(errors @ varying / (varying @ varying), 0)
        a = mean - b * powers.mean()
        # Below zero no error can fall: then the line goes through it.
        b = np.where(a < 0, errors @ powers / (powers @ powers), b)
        a = np.maximum(a, 0)
        missed = ((errors - a[:, None] - b[:, None] * powers) ** 2).sum(axis=1)
        found = (missed, a, b, np.full_like(a, c))
        if best is None:
            best = found
            continue
        better = missed < best[0]
        best = tuple(np.where(better, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None
    return best[1], best[2], best[3]
