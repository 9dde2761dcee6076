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

LEAST, MOST = 1e-3, 1e3  # of the inverse temperature
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


def fit_temperature(logits: Tensor, labels: Tensor, *, prior: float = math.inf) -> TemperatureFit:
    """The temperature T > 0 that minimises the NLL of ``softmax(logits / T)``.

    The NLL is convex in ``b = 1 / T``: the root of its derivative, ``mean(sum_c p_c z_c - z_y)``,
    is found by bisection of log b in float64, so it cannot diverge. Log probabilities are logits
    too.

    With a finite prior, log T is taken to be normal about 0 before anything is seen, and T is the
    most probable one afterwards: a few dozen images that are all answered right then do not call
    for certainty, and thousands decide alone.

    Args:
        logits: ``(N, C)``, or log probabilities.
        labels: ``(N,)`` in ``[0, C)``.
        prior: standard deviation of log T; infinite for the maximum of the likelihood.

    Raises:
        CalibrationError: no images, other labels than classes, or logits that are not finite.

    Source: Guo et al., On calibration of modern neural networks, 2017; the prior is ours.
    """
    _check(logits, labels)
    rows = logits.detach().double()
    rows = rows - rows.amax(dim=-1, keepdim=True)
    if math.isfinite(prior):
        inverse = _most_probable_inverse(rows, labels, prior)
    else:
        inverse = _minimising_inverse(rows, labels)
    if inverse in (LEAST, MOST):
        trouble = "right" if inverse == MOST else "no better than chance"
        warnings.warn(
            f"The held-out answers are {trouble} everywhere, so no temperature fits best; "
            f"took {1 / inverse:g}; calibrate with more images.",
            stacklevel=2,
        )
    if len(labels) < FEW_IMAGES:
        warnings.warn(
            f"Fitted a temperature on {len(labels)} images; hold out at least {FEW_IMAGES}.",
            stacklevel=2,
        )
    return TemperatureFit(
        temperature=1 / inverse,
        nll_before=_nll(rows, labels),
        nll_after=_nll(inverse * rows, labels),
        images=len(labels),
    )


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """``logits / T`` in float64, ``(N, C)``; T = 1 changes no bit."""
    return logits if temperature == 1.0 else logits.double() / temperature


def log_of(probabilities: Tensor) -> Tensor:
    """Finite log probabilities in float64: 0 counts as the type's smallest positive number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).double().log()


def fit_reject_rule(probabilities: Tensor, labels: Tensor, *, risk: float) -> RejectRule:
    """The lowest confidence to accept such that at most ``risk`` of the accepted are wrong.

    Args:
        probabilities: ``(N, C)``, calibrated already.
        labels: ``(N,)``.
        risk: wanted share of wrong answers among the accepted, in ``[0, 1)``.

    Raises:
        CalibrationError: no threshold reaches the risk on these images.

    Source: Geifman & El-Yaniv, Selective classification for deep neural networks, 2017.
    """
    if not 0 <= risk < 1:
        raise CalibrationError(
            f"Expected a risk in [0, 1), found {risk}; 0.02 is two in a hundred."
        )
    _check(probabilities, labels)
    confidence, predicted = probabilities.detach().double().max(dim=-1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = (predicted != labels)[order].double().cumsum(dim=0)
    accepted = torch.arange(1, len(labels) + 1, dtype=torch.float64)
    sorted_confidence = confidence[order]
    # Images of equal confidence are accepted or rejected together.
    last_of_equals = torch.ones(len(labels), dtype=torch.bool)
    last_of_equals[:-1] = sorted_confidence[1:] < sorted_confidence[:-1]
    good = torch.nonzero((wrong / accepted <= risk) & last_of_equals)
    if len(good) == 0:
        reachable = float((wrong / accepted)[last_of_equals].min())
        raise CalibrationError(
            f"Expected a threshold with a risk of at most {risk:g}, found none: the least on "
            f"{len(labels)} images is {reachable:.3g}; ask for that, or calibrate with more images."
        )
    last = int(good[-1])
    count, errors = last + 1, int(wrong[last])
    return RejectRule(
        threshold=float(sorted_confidence[last]),
        risk=errors / count,
        risk_bound=_upper_bound(errors, count),
        coverage=count / len(labels),
    )


def _most_probable_inverse(rows: Tensor, labels: Tensor, prior: float) -> float:
    """Of ``N NLL + (log T)^2 / (2 prior^2)``: the best of a grid, then between its neighbours."""
    from scipy.optimize import minimize_scalar  # late: not needed to predict

    def loss(log_inverse: float) -> float:
        images = len(labels) * _nll(math.exp(log_inverse) * rows, labels)
        return images + log_inverse**2 / (2 * prior**2)

    grid = torch.linspace(math.log(LEAST), math.log(MOST), 57, dtype=torch.float64).tolist()
    best = min(range(len(grid)), key=lambda index: loss(grid[index]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


def _minimising_inverse(rows: Tensor, labels: Tensor) -> float:
    true_logits = rows.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    def slope(log_inverse: float) -> float:
        probabilities = (math.exp(log_inverse) * rows).softmax(dim=-1)
        return float(((probabilities * rows).sum(dim=-1) - true_logits).mean())

    low, high = math.log(LEAST), math.log(MOST)
    if slope(0.0) == 0.0:
        return 1.0  # rows of equal logits: every temperature gives the same answers
    if slope(high) <= 0:
        return MOST
    if slope(low) >= 0:
        return LEAST
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return math.exp((low + high) / 2)


def _nll(logits: Tensor, labels: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, labels))


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
