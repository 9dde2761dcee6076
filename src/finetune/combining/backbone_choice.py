"""Which backbone: many judged on few images, the best on more, the cheapest of the equals named.

Successive halving (Jamieson and Talwalkar, Non-stochastic best arm identification, 2016): all are
judged on a small part of the sample, the better half on three times as much, until the last few are
judged on all of it. What judges is the cross-validated answers of the final layer that a fit would
deliver; scores that leave out how well labels can be fitted tell less (arXiv 2405.20420).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.combining.selection import choose_coefficients, cross_validated_answers
from finetune.evaluation.intervals import wilson_interval
from finetune.tasks import categorical
from finetune.tasks.multiclass import MULTICLASS
from finetune.training.penalty_search import MAX_IMAGES, MAX_IMAGES_A_CLASS

FINALISTS = 3  # are judged on the whole sample: enough for a set that answers together
GROWTH = 3  # of the sample from one round to the next
SHARE = 4  # of the training images one in so many is enough for the last round ...
FEWEST, FEWEST_A_CLASS = 150, 10  # ... but no fewer than these, ...
FEWEST_AT_FIRST, FEWEST_A_CLASS_AT_FIRST = 50, 5  # ... and than these in the first


@dataclass(frozen=True, eq=False)
class Trial:
    """A backbone, what it costs, and its cross-validated answers to N images.

    Attributes:
        backbone: as ``--model.backbone`` takes it.
        pretrained: as ``--model.pretrained`` takes it: true, or a file of weights.
        milliseconds: an image, on this machine.
        megabytes: of its weights in single precision.
        licence: of the weights; empty where it is not known.
        logits: ``(N, C)``, of each image by a fit that did not see it.
        labels: ``(N,)``.
    """

    backbone: str
    pretrained: bool | str
    milliseconds: float
    megabytes: float
    licence: str
    logits: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        """The backbone's, and of a file of weights that too."""
        return named(self.backbone, self.pretrained)

    @property
    def images(self) -> int:
        """How many it was judged on."""
        return len(self.labels)

    @cached_property
    def losses(self) -> Tensor:
        """Negative log likelihood of each image, in nats."""
        return categorical.losses(self.logits, self.labels)

    @property
    def nll(self) -> float:
        """Mean over the images, in nats."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Of :attr:`nll`."""
        return _standard_error(self.losses)

    @property
    def accuracy(self) -> float:
        """In ``[0, 1]``."""
        return self._right / self.images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson's, at 95 %."""
        return wilson_interval(self._right, self.images)

    @property
    def _right(self) -> int:
        return int((categorical.likeliest(self.logits) == self.labels).sum())

    def lags(self, other: Trial) -> tuple[float, float]:
        """By how much its NLL is above another's on the same images, and the standard error."""
        differences = self.losses - other.losses
        return float(differences.mean()), _standard_error(differences)


@dataclass(frozen=True, slots=True)
class Together:
    """Backbones that answer together, chosen greedily (Mustafa et al. 2020, arXiv 2010.06866).

    Attributes:
        coefficients: by name, those above 0, the largest first; they sum to 1.
        nll: mean over the images, each answered with coefficients that others chose.
        gain: how far that is below the best single one's NLL; above 0 is better.
        standard_error: of the gain.
    """

    coefficients: dict[str, float]
    nll: float
    gain: float
    standard_error: float

    @property
    def pays(self) -> bool:
        """Whether several are better than one, by more than a standard error."""
        return len(self.coefficients) > 1 and self.gain > self.standard_error


@dataclass(frozen=True, slots=True)
class BackboneChoice:
    """What was found.

    Attributes:
        trials: of the last round, on the same images, the best by NLL first.
        earlier: those that were left behind, each as it was last judged.
        together: of the last round's.
    """

    trials: tuple[Trial, ...]
    earlier: tuple[Trial, ...]
    together: Together

    @property
    def best(self) -> Trial:
        """Of the least NLL."""
        return self.trials[0]

    @property
    def equals(self) -> tuple[Trial, ...]:
        """The best, and what lags behind it by no more than one standard error of the pair."""
        return tuple(each for each in self.trials if _is_equal(each, self.best))

    @property
    def named(self) -> Trial:
        """The cheapest of the equals."""
        return min(self.equals, key=_cost)

    @property
    def reason(self) -> str:
        """Why that one, in a clause."""
        named, best = self.named, self.best
        if len(self.trials) == 1:
            return "the only one that was judged"
        if len(self.equals) == 1:
            return f"the best of {len(self.trials)} by more than one standard error"
        if named is best:
            return f"the best, and the cheapest of the {len(self.equals)} that are as good"
        lag, error = named.lags(best)
        return (
            f"the cheapest of {len(self.equals)} within one standard error of the best, "
            f"{best.name}: NLL {lag:+.3f} ± {error:.3f}, {named.milliseconds:.1f} instead of "
            f"{best.milliseconds:.1f} ms an image"
        )


Judge = Callable[[Sequence[str], int], Sequence[Trial | None]]


def choose_backbone(
    names: Sequence[str],
    sizes: Sequence[int],
    judge: Judge,
    *,
    affordable: Callable[[Sequence[Trial], int], bool] = lambda trials, images: True,
    seed: int = 0,
) -> BackboneChoice | None:
    """Judge backbones on samples of growing size, and all of the last round on the same images.

    Args:
        names: of the backbones.
        sizes: images of each round, rising; see :func:`rounds`.
        judge: makes a trial of each name on so many images; None: it is out.
        affordable: whether there is time to judge these on so many images; else the round before
            was the last.
        seed: of the greedy choice of a set.

    Returns:
        None where none was judged.
    """
    remaining, earlier, trials = list(names), list[Trial](), list[Trial]()
    for number, size in enumerate(sizes):
        if number > 0:
            is_last = number == len(sizes) - 1
            kept = _ahead(trials, FINALISTS if is_last else _half(len(trials)))
            if not affordable(kept, size):
                break
            earlier[:0] = [each for each in trials if each not in kept]
            remaining = [each.name for each in kept]
        trials = _in_common(each for each in judge(remaining, size) if each is not None)
        if not trials:
            return None
    trials.sort(key=lambda trial: trial.nll)
    return BackboneChoice(tuple(trials), tuple(earlier), choose_set(trials, seed=seed))


def named(backbone: str, pretrained: bool | str) -> str:
    """One name for a backbone with its own weights, and another for each file of weights."""
    return backbone if pretrained is True else f"{backbone}={Path(str(pretrained)).name}"


def rounds(backbones: int, images: int, classes: int) -> list[int]:
    """How many images judge in each round; of few, all of them at once."""
    last = max(images // SHARE, FEWEST, FEWEST_A_CLASS * classes)
    last = min(last, images, max(MAX_IMAGES, MAX_IMAGES_A_CLASS * classes))
    sizes = [last]
    while backbones > FINALISTS:
        fewest = max(FEWEST_AT_FIRST, FEWEST_A_CLASS_AT_FIRST * classes)
        sizes.append(min(last, max(sizes[-1] // GROWTH, fewest)))
        backbones = _half(backbones)
    return sorted(set(sizes))


def nested_sample(labels: Sequence[int], keys: Sequence[str], *, seed: int = 0) -> list[int]:
    """An order of the images whose every beginning has of each class its share, nearly.

    Args:
        labels: ``(N,)``.
        keys: what makes the order, with the seed: equal ones, equal order.
        seed: another seed, another order.
    """
    generator = np.random.default_rng(seed)
    labels_of = np.asarray(labels)
    by_key = np.asarray(sorted(range(len(keys)), key=lambda index: keys[index]), dtype=int)
    places = np.empty(len(labels))
    for label in np.unique(labels_of):
        own = by_key[labels_of[by_key] == label]
        places[generator.permutation(own)] = (np.arange(len(own)) + 0.5) / len(own)
    return np.lexsort((labels_of, places)).tolist()


def choose_set(trials: Sequence[Trial], *, seed: int = 0) -> Together:
    """Those that answer best together, by the mean of their probabilities."""
    if len(trials) == 1:
        return Together({trials[0].name: 1.0}, trials[0].nll, 0.0, math.inf)
    logits, labels = torch.stack([trial.logits for trial in trials]), trials[0].labels

    def choose(members: Tensor, answers: Tensor) -> Sequence[float]:
        return choose_coefficients(members, answers, method="greedy", seed=seed)

    pooled = cross_validated_answers(MULTICLASS, logits, labels, choose, seed=seed)
    losses = categorical.losses(pooled, labels)
    gains = min(trials, key=lambda trial: trial.nll).losses - losses
    shares = zip(choose(logits, labels), trials, strict=True)
    ranked = sorted(((share, each.name) for share, each in shares if share > 0), reverse=True)
    coefficients = {name: share for share, name in ranked}
    return Together(coefficients, float(losses.mean()), float(gains.mean()), _standard_error(gains))


def _ahead(trials: Sequence[Trial], number: int) -> list[Trial]:
    """So many that go on: the best, then its equals by their cost, then the others by NLL."""
    best = min(trials, key=lambda trial: trial.nll)

    def place(trial: Trial) -> tuple[float, ...]:
        if trial is best:
            return (0,)
        return (1, *_cost(trial)) if _is_equal(trial, best) else (2, trial.nll)

    return sorted(trials, key=place)[:number]


def _half(backbones: int) -> int:
    return min(backbones, max(FINALISTS, math.ceil(backbones / 2)))


def _is_equal(trial: Trial, best: Trial) -> bool:
    lag, error = trial.lags(best)
    return lag <= error


def _cost(trial: Trial) -> tuple[float, float]:
    return trial.milliseconds, trial.megabytes


def _in_common(trials: Iterable[Trial]) -> list[Trial]:
    """The same on the images that all have answers to: some are never left out of a fit."""
    found = list(trials)
    if not found:
        return []
    known = torch.stack([~trial.logits.isnan().any(dim=1) for trial in found]).all(dim=0)
    return [replace(each, logits=each.logits[known], labels=each.labels[known]) for each in found]


def _standard_error(values: Tensor) -> float:
    """Of the mean of ``(N,)``; of one value, infinite."""
    if len(values) < 2:
        return math.inf
    return float(values.std(correction=1)) / math.sqrt(len(values))
