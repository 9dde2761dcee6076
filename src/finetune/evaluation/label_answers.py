"""Answers to images with several labels each, and their figures: intervals are of a bootstrap."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.evaluation.intervals import bootstrap_counts, percentile_interval
from finetune.evaluation.judgement import FEW_IMAGES, Interval
from finetune.tasks.class_scores import CALIBRATION_BINS, ConfidenceBins, Floats, Integers
from finetune.tasks.class_scores import confidence_bins as bins_of
from finetune.tasks.label_scores import FIGURES, LabelScores, label_scores, weighted_scores
from finetune.tasks.multilabel import MULTILABEL, offsets

MOST_NUMBERS = 4_000_000  # of weights at a time


@dataclass(frozen=True, eq=False)
class LabelAnswers:
    """One set of answers to one set of images, with several labels each, and their figures.

    Attributes:
        targets: ``(N, K)``: 1, 0, or NaN where it is not known.
        outputs: logits ``(N, K)``.
        class_names, paths: of the K labels and the N images.
        thresholds: probabilities above which a label is named, ``(K,)``; None: 0.5.
        chosen_here: whether they were chosen on these images: what they decide then flatters.
        groups: ``(N,)``; images of one number are drawn together. None: each alone.
        fold_maps: mAP of each fold, if there are folds.
    """

    targets: Floats = field(repr=False)
    outputs: Floats = field(repr=False)
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = field(repr=False)
    thresholds: tuple[float, ...] | None = None
    chosen_here: bool = False
    groups: Integers | None = field(default=None, repr=False)
    fold_maps: tuple[float, ...] = ()
    confidence_level: float = 0.95

    @property
    def half_width(self) -> None:
        """None: there are no intervals about labels."""

    @cached_property
    def offsets(self) -> Floats:
        """Logits of the thresholds, ``(K,)``."""
        values: Floats = offsets(self.thresholds, len(self.class_names)).numpy()
        return values

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which answers can be judged, ``(N, K)``."""
        return ~np.isnan(self.targets)

    @cached_property
    def named(self) -> NDArray[np.bool_]:
        """Which labels were named, ``(N, K)``."""
        named: NDArray[np.bool_] = self.outputs > self.offsets
        return named

    @cached_property
    def missed(self) -> NDArray[np.bool_]:
        """Labels that an image has and that were not named, ``(N, K)``."""
        return self.known & (self.targets == 1) & ~self.named

    @cached_property
    def added(self) -> NDArray[np.bool_]:
        """Labels that were named and that an image does not have, ``(N, K)``."""
        return self.known & (self.targets == 0) & self.named

    @property
    def right(self) -> NDArray[np.bool_]:
        """Images of which all that is known was answered right, ``(N,)``."""
        wrong: NDArray[np.bool_] = (self.missed | self.added).max(axis=1)
        return ~wrong

    @cached_property
    def probabilities(self) -> Floats:
        """Of each label, ``(N, K)``."""
        return np.exp(self.log_probabilities)

    @cached_property
    def confidences(self) -> Floats:
        """Probability of the whole answer, as if labels were independent, ``(N,)``."""
        sure: Floats = np.maximum(self.probabilities, 1 - self.probabilities).prod(axis=1)
        return sure

    @cached_property
    def log_probabilities(self) -> Floats:
        """Of each label in nats, ``(N, K)``."""
        values: Floats = MULTILABEL.log_probabilities(torch.from_numpy(self.outputs)).numpy()
        return values

    @cached_property
    def figures(self) -> dict[str, float]:
        """Of the whole, as every other room has them."""
        given = torch.from_numpy(self.outputs), torch.from_numpy(self.targets)
        return MULTILABEL.figures(*given, self.thresholds)

    @cached_property
    def per_label(self) -> list[LabelScores]:
        """Of each label."""
        return label_scores(self.outputs, self.targets, self.offsets)

    @cached_property
    def losses(self) -> Floats:
        """NLL of each image, ``(N,)``, such that their mean is that of all known answers."""
        given = torch.from_numpy(self.outputs), torch.from_numpy(self.targets)
        values: Floats = MULTILABEL.losses(*given).numpy()
        return values

    @cached_property
    def calibration(self) -> ConfidenceBins:
        """How often a label is there that was given such a probability; over all known answers."""
        having = self.targets[self.known] == 1
        return bins_of(self.probabilities[self.known], having, CALIBRATION_BINS)

    @cached_property
    def _counts(self) -> Floats:
        return bootstrap_counts(self.groups, len(self.paths))

    @cached_property
    def resampled(self) -> Floats:
        """The figures of each label over resamples of the groups, ``(R, K, 5)``; NaN: undefined."""
        rows = max(1, MOST_NUMBERS // len(self.paths))
        parts = np.array_split(self._counts, -(-len(self._counts) // rows))
        given = self.outputs, self.targets, self.offsets
        return np.concatenate([weighted_scores(*given, part) for part in parts])

    @property
    def resampled_map(self) -> Floats:
        """mAP over resamples, ``(R,)``."""
        return _mean_over_labels(self.resampled[:, :, 0])

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of the figures of the whole, by their names."""
        counts, wrong = self._counts, self.missed | self.added
        images = counts.sum(axis=1)
        over = {
            "map": self.resampled_map,
            "macro_auroc": _mean_over_labels(self.resampled[:, :, 1]),
            "macro_f1": _mean_over_labels(self.resampled[:, :, 2]),
            "exact_set_accuracy": counts @ self.right / images,
            "hamming_loss": counts
            @ wrong.sum(axis=1)
            / np.maximum(counts @ self.known.sum(axis=1), 1),
            "nll": counts @ self.losses / images,
        }
        level = self.confidence_level
        return {name: percentile_interval(r, confidence_level=level) for name, r in over.items()}

    def label_interval(self, label: int, figure: str) -> Interval | None:
        """Of one of :data:`FIGURES` of one label; None where it is not defined."""
        values = self.resampled[:, label, FIGURES.index(figure)]
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        return percentile_interval(values, confidence_level=self.confidence_level)

    @property
    def few(self) -> list[bool]:
        """Which labels have too few images, ``(K,)``."""
        return [scores.support < FEW_IMAGES for scores in self.per_label]

    @cached_property
    def of_truth(self) -> Floats:
        """Probability of what is on file, ``(N, K)``; 1 where nothing is."""
        of_truth = np.where(self.targets == 1, self.probabilities, 1 - self.probabilities)
        return np.where(self.known, of_truth, 1.0)


def _mean_over_labels(values: Floats) -> Floats:
    """``(R, K)`` to ``(R,)``, over those that are defined; 0 where none is."""
    defined = ~np.isnan(values)
    total: Floats = np.where(defined, values, 0.0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)
    return total
