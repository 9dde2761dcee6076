"""What :func:`finetune.evaluation.evaluate.evaluate` finds: every figure of one set of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from finetune.evaluation.clusters import about_groups
from finetune.evaluation.judgement import (
    FEW_IMAGES,
    Interval,
    OfPart,
    Part,
    Question,
    Score,
    Shown,
    Table,
    few_note,
    finite,
    fold_score,
    fold_summary,
)
from finetune.evaluation.paired import Difference, accuracy_difference
from finetune.evaluation.scores import DominantImage, dominant_image
from finetune.tasks.class_scores import ConfidenceBins, Floats, Integers, losses_of
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class's figures; NaN where they are undefined (no image, or never predicted)."""

    name: str
    support: int
    precision: float
    recall: float
    recall_interval: Interval
    f1: float
    auroc: float

    @property
    def few_images(self) -> bool:
        """Whether there are too few test images to trust these figures."""
        return self.support < FEW_IMAGES

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None where a figure is undefined."""
        return {
            "class": self.name,
            "support": self.support,
            "precision": finite(self.precision),
            "recall": finite(self.recall),
            "recall_low": self.recall_interval[0],
            "recall_high": self.recall_interval[1],
            "f1": finite(self.f1),
            "auroc": finite(self.auroc),
            "few_images": self.few_images,
        }


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """``count`` images of class ``label``, a ``share`` of them, were taken for ``prediction``."""

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All figures of one set of answers to one set of images.

    Attributes:
        labels: ``(N,)`` indexes into ``class_names``.
        probabilities: ``(N, C)``, as given.
        log_probabilities: ``(N, C)`` in nats, finite also where a probability is too small for a
            float; ``nll`` and ``brier`` come from these.
        predictions: the likeliest class of each image, ``(N,)``; of equals, the first.
        class_names, paths: names of the ``C`` classes and of the ``N`` images.
        groups: ``(N,)``; images of one number are not independent; None: each is alone.
        accuracy: with Wilson's and a bootstrap interval.
        balanced_accuracy, macro_f1: means over the classes that occur among the labels.
        top_k: ``{k: share of images whose label is among the k likeliest classes}``.
        calibration: confidence bins; ``calibration.error`` is the expected calibration error.
        coverage, risk: ``(N,)`` each; ``aurc`` is the mean risk, smaller is better.
        confusion: ``(C, C)`` counts, rows are labels, columns predictions.
        fold_accuracies: accuracy of each fold, if ``evaluate`` was told the folds.

    Examples:
        >>> found = finetune.evaluate([0, 1, 1], [[1, 0], [0, 1], [1, 0]], ["cat", "dog"])
        >>> found.confusion.tolist()  # a cat, and two dogs of which one was taken for a cat
        [[1, 0], [1, 1]]
    """

    labels: Integers = field(repr=False)
    probabilities: Floats = field(repr=False)
    log_probabilities: Floats = field(repr=False)
    predictions: Integers = field(repr=False)
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = field(repr=False)
    groups: Integers | None = field(repr=False)
    confidence_level: float
    accuracy: float
    accuracy_wilson: Interval
    accuracy_bootstrap: Interval
    balanced_accuracy: float
    balanced_accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    macro_auroc: float
    nll: float
    brier: float
    aurc: float
    top_k: dict[int, float]
    calibration: ConfidenceBins = field(repr=False)
    coverage: Floats = field(repr=False)
    risk: Floats = field(repr=False)
    confusion: Integers = field(repr=False)
    per_class: tuple[ClassScores, ...] = field(repr=False)
    fold_accuracies: tuple[float, ...] = ()

    @property
    def task(self) -> Task:
        """One class an image."""
        return MULTICLASS

    @property
    def targets(self) -> Integers:
        """The labels."""
        return self.labels

    @property
    def outputs(self) -> Floats:
        """The log probabilities: they are logits too."""
        return self.log_probabilities

    @property
    def thresholds(self) -> None:
        """None: the likeliest class is named."""

    @property
    def chosen_here(self) -> bool:
        """False: there are none."""
        return False

    @property
    def half_width(self) -> None:
        """None: there are no intervals about classes."""

    @property
    def losses(self) -> Floats:
        """``-log p(label)`` of each image, ``(N,)``, in nats; ``nll`` is their mean."""
        return losses_of(self.labels, self.log_probabilities)

    @property
    def dominant(self) -> DominantImage | None:
        """The one image that carries more than half of the NLL, where there is such."""
        return dominant_image(self.losses, self.paths)

    @property
    def confidences(self) -> Floats:
        """Probability of the predicted class, ``(N,)``."""
        return self.probabilities.max(axis=1)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 15 equal bins of the winning probability."""
        return self.calibration.error

    @property
    def classes_with_few_images(self) -> tuple[str, ...]:
        """Classes whose own figures mean little, those without any image included."""
        return tuple(scores.name for scores in self.per_class if scores.few_images)

    def confused_pairs(self, limit: int = 20) -> tuple[ConfusedPair, ...]:
        """The most frequent errors, most frequent first."""
        errors = self.confusion.copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
        support = self.confusion.sum(axis=1)
        return tuple(
            ConfusedPair(
                self.class_names[row],
                self.class_names[column],
                int(errors[row, column]),
                float(errors[row, column] / support[row]),
            )
            for row, column in pairs
            if errors[row, column]
        )

    @property
    def leading(self) -> tuple[Score, ...]:
        """Accuracy decides."""
        return (
            Score("accuracy", self.accuracy, self.accuracy_wilson),
            Score("macro F1", self.macro_f1, self.macro_f1_interval),
            Score("NLL", self.nll, kind="number", rises=False),
            Score("calibration error", self.calibration_error, rises=False),
        )

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of the whole, top-k accuracies and the mean over folds included."""
        return (
            Score("accuracy", self.accuracy, self.accuracy_wilson),
            Score("balanced accuracy", self.balanced_accuracy, self.balanced_accuracy_interval),
            Score("macro F1", self.macro_f1, self.macro_f1_interval),
            Score("mean AUROC", self.macro_auroc, kind="number"),
            Score("negative log-likelihood", self.nll, kind="number", rises=False),
            Score("Brier score", self.brier, kind="number", rises=False),
            Score("calibration error", self.calibration_error, rises=False),
            Score("risk-coverage area", self.aurc, kind="number", rises=False),
            *(Score(f"top-{k} accuracy", share) for k, share in self.top_k.items()),
            *fold_score(self.fold_accuracies),
        )

    @property
    def about(self) -> str:
        """How many classes."""
        return f"{len(self.class_names)} classes"

    @property
    def notes(self) -> list[str]:
        """Images in groups; one that decides the likelihood; classes with few images."""
        grouped = about_groups(self.predictions == self.labels, self.groups)
        dominant = "" if self.dominant is None else f"Of the likelihood: {self.dominant}."
        return [*filter(None, (grouped, dominant)), *few_note(self.classes_with_few_images)]

    @property
    def tables(self) -> tuple[Table, ...]:
        """The classes, and what is most confused."""
        of_class = Table(
            "classes",
            "Classes",
            (
                ("class", "text"),
                ("images", "count"),
                *((each, "share") for each in ("precision", "recall", "recall from", "recall to")),
                ("F1", "share"),
                ("AUROC", "share"),
            ),
            [
                (c.name, c.support, c.precision, c.recall, *c.recall_interval, c.f1, c.auroc)
                for c in self.per_class
            ],
            [c.few_images for c in self.per_class],
        )
        confused = Table(
            "confused",
            "Most confused",
            (
                ("label", "text"),
                ("taken for", "text"),
                ("images", "count"),
                ("share of the label", "share"),
            ),
            [(p.label, p.prediction, p.count, p.share) for p in self.confused_pairs()],
        )
        return (of_class, confused) if confused.rows else (of_class,)

    @property
    def parts(self) -> tuple[str, list[dict[str, Any]]]:
        """A row a class."""
        return "per_class", [scores.to_dict() for scores in self.per_class]

    @property
    def error_kinds(self) -> tuple[str, str]:
        """By the class that is right, or by the one that was named."""
        return "label", "prediction"

    def shown(self, index: int) -> Shown:
        """One of the images."""
        label, answer = int(self.labels[index]), int(self.predictions[index])
        names = self.class_names
        return Shown(
            label=names[label],
            answer=names[answer],
            wrong=label != answer,
            sure=float(self.confidences[index]),
            of_label=(Part(label, names[label]),),
            of_answer=(Part(answer, names[answer]),),
        )

    def errors(self) -> Integers:
        """Indexes of the wrong answers, the surest first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")]

    def rights(self) -> Iterator[OfPart]:
        """Of each class with images."""
        for label in np.unique(self.labels):
            own = self.labels == label
            yield OfPart(self.class_names[label], own, self.predictions[own] == label)

    def questions(self) -> Iterator[Question]:
        """One: of which class is it?"""
        images = np.arange(len(self.labels))
        yield Question(images, self.labels, self.probabilities, self.class_names)

    def row(self, index: int) -> tuple[dict[str, Any], list[float]]:
        """A line of a table of predictions."""
        shown = self.shown(index)
        columns = {"path": self.paths[index], "label": shown.label, "prediction": shown.answer}
        if self.groups is not None:
            columns["group"] = str(self.groups[index])
        return {**columns, "confidence": shown.sure}, self.log_probabilities[index].tolist()

    def against(self, other: Evaluation) -> Difference:
        """Of the accuracies, with the groups of either that knows of them."""
        rights = (each.predictions == each.labels for each in (self, other))
        groups = other.groups if self.groups is None else self.groups
        return accuracy_difference(*rights, groups=groups, confidence_level=self.confidence_level)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``; None where a figure is undefined."""
        folds, dominant = self.fold_accuracies, self.dominant
        return {
            "images": len(self.labels),
            "classes": len(self.class_names),
            "confidence_level": self.confidence_level,
            "accuracy": self.accuracy,
            "accuracy_wilson": list(self.accuracy_wilson),
            "accuracy_bootstrap": list(self.accuracy_bootstrap),
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_interval": list(self.balanced_accuracy_interval),
            "macro_f1": self.macro_f1,
            "macro_f1_interval": list(self.macro_f1_interval),
            "macro_auroc": finite(self.macro_auroc),
            "nll": self.nll,
            **({} if dominant is None else {"dominant_image": asdict(dominant)}),
            "brier": self.brier,
            "calibration_error": self.calibration_error,
            "aurc": self.aurc,
            **{f"top_{k}_accuracy": share for k, share in self.top_k.items()},
            **({"folds": fold_summary(folds, "accuracies")} if folds else {}),
            "classes_with_few_images": list(self.classes_with_few_images),
            "most_confused": [asdict(pair) for pair in self.confused_pairs()],
            "class_names": list(self.class_names),
            "confusion_matrix": self.confusion.tolist(),
        }
