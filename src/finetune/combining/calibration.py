"""Probabilities that mean what they say: one temperature, and a confidence below which to abstain.

A temperature is fitted to held-out answers that picked nothing else, to the pooled answer of an
ensemble rather than to each member (Rahaman & Thiery, Uncertainty quantification and deep
ensembles, 2021). It never changes the order of the classes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.errors import CalibrationError
from finetune.tasks import categorical
from finetune.training.temperature import best_temperature

LEAST, MOST = 1e-3, 1e3  # of the temperature
FEW_IMAGES = 50
# Standard deviation of log T over fits as we know them: T between 1/2.7 and 2.7 for 19 of 20.
USUAL_PRIOR = 0.5


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """A temperature and what it does to the images it was fitted on (NLL in nats an image)."""

    temperature: float
    nll_before: float
    nll_after: float
    images: int


@dataclass(frozen=True, slots=True)
class RejectRule:
    """Accept an answer whose largest probability is at least ``threshold``.

    Attributes:
        threshold: in [0, 1].
        risk: share of wrong answers among the accepted calibration images.
        risk_bound: 95 % upper bound of that share (Clopper-Pearson, one-sided).
        coverage: share of the calibration images that are accepted.
    """

    threshold: float
    risk: float
    risk_bound: float
    coverage: float


def fit_temperature(
    logits: Tensor, labels: Tensor, *, prior: float = math.inf, images: int | None = None
) -> TemperatureFit:
    """The temperature T > 0 that minimises the NLL of the answer of ``logits / T``.

    Args:
        logits: ``(N, C)``, or log probabilities: rows of any task.
        labels: ``(N,)`` in ``[0, C)``.
        prior: standard deviation of log T; infinite for the maximum of the likelihood. See
            :func:`finetune.training.temperature.best_temperature`.
        images: that the rows are of, where one image has several; None: as many as rows.

    Raises:
        CalibrationError: no images, other labels than classes, or logits that are not finite.
    """
    _check(logits, labels)
    rows = logits.detach().double()
    rows = rows - rows.amax(dim=-1, keepdim=True)
    temperature = best_temperature(rows, labels, bounds=(LEAST, MOST), prior=prior, unsure=False)
    if math.isclose(temperature, LEAST) or math.isclose(temperature, MOST):
        trouble = "right" if temperature < 1 else "no better than chance"
        warnings.warn(
            f"The held-out answers are {trouble} everywhere, so no temperature fits best; "
            f"took {temperature:g}; calibrate with more images.",
            stacklevel=2,
        )
    count = len(labels) if images is None else images
    if count < FEW_IMAGES:
        warnings.warn(
            f"Fitted a temperature on {count} images; hold out at least {FEW_IMAGES}.",
            stacklevel=2,
        )
    return TemperatureFit(
        temperature=temperature,
        nll_before=_nll(rows, labels),
        nll_after=_nll(rows / temperature, labels),
        images=count,
    )


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """``logits / T`` in float64, ``(N, C)``; T = 1 changes no bit."""
    return logits if temperature == 1.0 else logits.double() / temperature


def fit_reject_rule(confidence: Tensor, wrong: Tensor, *, risk: float) -> RejectRule:
    """The lowest confidence to accept such that at most ``risk`` of the accepted are wrong.

    Args:
        confidence: of each answer, ``(N,)``, calibrated already.
        wrong: which answers are, ``(N,)`` bool.
        risk: wanted share of wrong answers among the accepted, in ``[0, 1)``.

    Raises:
        CalibrationError: no threshold reaches the risk on these images.

    Source: Geifman & El-Yaniv, Selective classification for deep neural networks, 2017.
    """
    if not 0 <= risk < 1:
        raise CalibrationError(
            f"Expected a risk in [0, 1), found {risk}; 0.02 is two in a hundred."
        )
    order = confidence.double().argsort(descending=True, stable=True)
    errors_above = wrong[order].double().cumsum(dim=0)
    accepted = torch.arange(1, len(wrong) + 1, dtype=torch.float64)
    sorted_confidence = confidence.double()[order]
    # Images of equal confidence are accepted or rejected together.
    last_of_equals = torch.ones(len(wrong), dtype=torch.bool)
    last_of_equals[:-1] = sorted_confidence[1:] < sorted_confidence[:-1]
    good = torch.nonzero((errors_above / accepted <= risk) & last_of_equals)
    if len(good) == 0:
        reachable = float((errors_above / accepted)[last_of_equals].min())
        raise CalibrationError(
            f"Expected a threshold with a risk of at most {risk:g}, found none: the least on "
            f"{len(wrong)} images is {reachable:.3g}; ask for that, or calibrate with more images."
        )
    last = int(good[-1])
    count, errors = last + 1, int(errors_above[last])
    return RejectRule(
        threshold=float(sorted_confidence[last]),
        risk=errors / count,
        risk_bound=_upper_bound(errors, count),
        coverage=count / len(wrong),
    )


def _nll(logits: Tensor, labels: Tensor) -> float:
    return float(categorical.losses(logits, labels).mean())


def _upper_bound(errors: int, count: int, confidence: float = 0.95) -> float:
    from scipy.stats import beta  # late: a second to import

    return 1.0 if errors == count else float(beta.ppf(confidence, errors + 1, count - errors))


def _check(values: Tensor, labels: Tensor) -> None:
    if values.ndim != 2 or values.shape[0] != labels.shape[0] or values.shape[0] == 0:
        raise CalibrationError(
            "Expected a row of numbers for each of at least one image, found "
            f"{tuple(values.shape)} for {labels.shape[0]} labels; hold out labelled images."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= values.shape[1]:
        raise CalibrationError(
            f"Expected labels from 0 to {values.shape[1] - 1}, found {int(labels.min())} to "
            f"{int(labels.max())}; calibrate on the classes of the checkpoint."
        )
    if not bool(torch.isfinite(values).all()):
        raise CalibrationError(
            "Expected finite numbers for every image, found NaN or infinity; "
            "the checkpoint diverged: use an earlier one."
        )
