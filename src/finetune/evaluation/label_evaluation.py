"""What is told of several labels an image: to a page, a table, a leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from finetune.errors import UsageError
from finetune.evaluation.judgement import (
    Kind,
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
from finetune.evaluation.label_answers import LabelAnswers
from finetune.evaluation.paired import Difference, resampled_difference
from finetune.evaluation.scores import DominantImage, dominant_image
from finetune.spec.labels import SEPARATOR, THRESHOLD
from finetune.tasks.class_scores import Integers
from finetune.tasks.label_scores import FIGURES
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.task import Task


class LabelEvaluation(LabelAnswers):
    """All figures of one set of answers; see :class:`finetune.evaluation.judgement.Judgement`."""

    @property
    def task(self) -> Task:
        """Several labels an image."""
        return MULTILABEL

    @property
    def dominant(self) -> DominantImage | None:
        """The one image that carries more than half of the NLL, where there is such."""
        return dominant_image(self.losses, self.paths)

    @property
    def leading(self) -> tuple[Score, ...]:
        """The mean average precision decides: no threshold can move it."""
        names = {"map": "mAP", "macro_f1": "macro F1", "exact_set_accuracy": "exact sets"}
        return (
            *(self._score(figure, name) for figure, name in names.items()),
            self._score("nll", "NLL", number=True),
        )

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of the whole, with their intervals."""
        return (
            self._score("map", "mean average precision"),
            self._score("macro_auroc", "mean AUROC", number=True),
            self._score("macro_f1", "macro F1"),
            self._score("exact_set_accuracy", "exact-set accuracy"),
            self._score("hamming_loss", "Hamming loss"),
            self._score("nll", "NLL an answer", number=True),
            Score("calibration error", self.calibration.error, rises=False),
            *fold_score(self.fold_maps),
        )

    def _score(self, figure: str, name: str, *, number: bool = False) -> Score:
        rises = MULTILABEL.higher_is_better(figure)
        kind: Kind = "number" if number else "share"
        return Score(name, self.figures[figure], self.intervals[figure], kind, rises)

    @property
    def about(self) -> str:
        """How many labels, and how many of them an image has."""
        mean = float((self.targets == 1).sum(axis=1).mean())
        return f"{len(self.class_names)} labels, {mean:.1f} an image on average"

    @property
    def notes(self) -> list[str]:
        """What to beware of."""
        notes = [] if self.dominant is None else [f"Of the likelihood: {self.dominant}."]
        if self.chosen_here:
            notes.append(
                "The thresholds were chosen on these images: F1, precision, recall, exact sets and "
                "Hamming loss flatter."
            )
        names = zip(self.class_names, self.few, strict=True)
        return notes + few_note([name for name, few in names if few])

    @property
    def tables(self) -> tuple[Table, ...]:
        """A row a label."""
        of_label = ("AP", "AP from", "AP to", "AUROC", "F1", "F1 from", "F1 to")
        columns: list[tuple[str, Kind]] = [("label", "text")]
        columns += [(each, "count") for each in ("images", "missed", "wrongly named")]
        columns += [(each, "share") for each in (*of_label, "precision", "recall", "threshold")]
        missed, added = self.missed.sum(axis=0).tolist(), self.added.sum(axis=0).tolist()
        bounds = self.thresholds or (0.5,) * len(self.class_names)
        rows = []
        for label, (name, s) in enumerate(zip(self.class_names, self.per_label, strict=True)):
            ap = self.label_interval(label, "ap") or (None, None)
            f1 = self.label_interval(label, "f1") or (None, None)
            of = (s.ap, *ap, s.auroc, s.f1, *f1, s.precision, s.recall, bounds[label])
            rows.append((name, s.support, missed[label], added[label], *of))
        return (Table("labels", "Labels", columns, rows, self.few),)

    @property
    def parts(self) -> tuple[str, list[dict[str, Any]]]:
        """A row a label."""
        return "per_label", [self._part(label) for label in range(len(self.class_names))]

    def _part(self, label: int) -> dict[str, Any]:
        scores = self.per_label[label]
        row: dict[str, Any] = {
            "label": self.class_names[label],
            "support": scores.support,
            "known": scores.known,
            "threshold": 0.5 if self.thresholds is None else self.thresholds[label],
        }
        for figure in FIGURES:
            low, high = self.label_interval(label, figure) or (None, None)
            row |= {
                figure: finite(getattr(scores, figure)),
                f"{figure}_low": low,
                f"{figure}_high": high,
            }
        return {**row, "few_images": self.few[label]}

    @property
    def error_kinds(self) -> tuple[str, str]:
        """By a label that was missed, or by one that is not there."""
        return "missed", "wrongly named"

    def shown(self, index: int) -> Shown:
        """One of the images; of a wrong answer how sure the surest wrong label was."""
        truth, named = self.targets[index], self.named[index]
        missed, added = self._names(self.missed[index]), self._names(self.added[index])
        told = {"missed": missed, "not there": added}
        wrong = self.missed[index] | self.added[index]
        of_truth = self.of_truth[index]
        sure = 1 - of_truth[wrong].min() if wrong.any() else of_truth.min()
        return Shown(
            label=MULTILABEL.worded(torch.from_numpy(truth[None]), self.class_names)[0] or "none",
            answer=SEPARATOR.join(part.name for part in self._names(named)) or "none",
            wrong=bool(wrong.any()),
            sure=float(sure),
            remark="; ".join(
                f"{word}: {', '.join(part.name for part in parts)}"
                for word, parts in told.items()
                if parts
            ),
            of_label=missed,
            of_answer=added,
        )

    def _names(self, which: NDArray[np.bool_]) -> tuple[Part, ...]:
        return tuple(Part(i, self.class_names[i]) for i in np.flatnonzero(which).tolist())

    def errors(self) -> Integers:
        """Indexes of the images with a wrong label, those whose wrong label is surest first."""
        wrong = self.missed | self.added
        images = np.flatnonzero(wrong.any(axis=1))
        least = np.where(wrong, self.of_truth, np.inf).min(axis=1)
        return images[np.argsort(least[images], kind="stable")]

    def rights(self) -> Iterator[OfPart]:
        """Of each label of which something is known, over the images where it is."""
        wrong = self.missed | self.added
        for label, name in enumerate(self.class_names):
            if self.known[:, label].any():
                own = self.known[:, label]
                yield OfPart(name, own, ~wrong[own, label])

    def questions(self) -> Iterator[Question]:
        """One a label: does the image have it?"""
        for label, name in enumerate(self.class_names):
            images = np.flatnonzero(self.known[:, label])
            yes = self.probabilities[images, label]
            answers = (self.targets[images, label] == 1).astype(np.int64)
            both = np.stack([1 - yes, yes], axis=1)
            yield Question(images, answers, both, (f"not {name}", name))

    def row(self, index: int) -> tuple[Mapping[str, Any], list[float]]:
        """A line of a table of predictions, with the threshold of each label."""
        (label,) = MULTILABEL.worded(torch.from_numpy(self.targets[index][None]), self.class_names)
        answer = SEPARATOR.join(part.name for part in self._names(self.named[index]))
        sure = float(np.maximum(self.probabilities[index], 1 - self.probabilities[index]).min())
        columns = {"path": self.paths[index], "label": label, "prediction": answer}
        bounds = self.thresholds or (0.5,) * len(self.class_names)
        group = {} if self.groups is None else {"group": str(self.groups[index])}
        return {
            **columns,
            **group,
            "confidence": sure,
            **{f"{THRESHOLD}{name}": t for name, t in zip(self.class_names, bounds, strict=True)},
        }, self.log_probabilities[index].tolist()

    def against(self, other: LabelEvaluation) -> Difference:
        """Of the mAPs, by a paired bootstrap over groups, those of either that knows of them."""
        groups = other.groups if self.groups is None else self.groups
        first, second = (
            each if np.array_equal(each.groups, groups) else replace(each, groups=groups)  # type: ignore[arg-type]
            for each in (self, other)
        )
        return resampled_difference(
            (first.figures["map"], second.figures["map"]),
            (first.resampled_map, second.resampled_map),
            (first.right, second.right),
            confidence_level=self.confidence_level,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        dominant = self.dominant
        return {
            "images": len(self.paths),
            "labels": len(self.class_names),
            "confidence_level": self.confidence_level,
            **self.figures,
            **{f"{name}_interval": list(ends) for name, ends in self.intervals.items()},
            "calibration_error": self.calibration.error,
            **({} if dominant is None else {"dominant_image": asdict(dominant)}),
            **({"folds": fold_summary(self.fold_maps, "maps")} if self.fold_maps else {}),
            "class_names": list(self.class_names),
            "per_label": self.parts[1],
            "thresholds_chosen_here": self.chosen_here,
        }


def evaluate_labels(
    targets: ArrayLike,
    outputs: ArrayLike,
    class_names: Sequence[str],
    paths: Sequence[Any] | None = None,
    *,
    thresholds: Sequence[float] | None = None,
    chosen_here: bool = False,
    groups: Integers | None = None,
    folds: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> LabelEvaluation:
    """Judge logits ``(N, K)`` by ``targets (N, K)``: 1, 0, or NaN where it is not known.

    Args:
        targets, outputs, class_names: as above.
        paths: names of the images; their numbers if None.
        thresholds: probabilities ``(K,)`` above which a label is named; None: 0.5.
        chosen_here: whether they were chosen on these images.
        groups: ``(N,)``; images of one number are drawn together by the bootstrap.
        folds: the fold ``(N,)`` that each image was held out in.
        confidence_level: of all intervals.

    Raises:
        UsageError: shapes that do not belong together, or logits that are not finite.
    """
    truth, given = np.asarray(targets, np.float64), np.asarray(outputs, np.float64)
    names = tuple(str(name) for name in class_names)
    paths = range(len(given)) if paths is None else paths
    if truth.shape != given.shape or given.ndim != 2 or not len(given):
        raise UsageError(
            f"Expected a target for each of at least one row of answers, found {truth.shape} "
            f"targets for answers {given.shape}; leave out images without labels."
        )
    if given.shape != (len(paths), len(names)) or not np.isfinite(given).all():
        raise UsageError(
            f"Expected finite logits of {len(names)} labels for {len(paths)} images, found "
            f"{given.shape}; take an earlier checkpoint if it diverged."
        )
    fold_of = None if folds is None else np.asarray(folds)
    maps = (
        ()
        if fold_of is None
        else tuple(
            MULTILABEL.figures(torch.from_numpy(given[own]), torch.from_numpy(truth[own]))["map"]
            for own in (fold_of == fold for fold in np.unique(fold_of))
        )
    )
    return LabelEvaluation(
        truth,
        given,
        names,
        tuple(str(path) for path in paths),
        thresholds=None if thresholds is None else tuple(thresholds),
        chosen_here=chosen_here,
        groups=groups,
        fold_maps=maps,
        confidence_level=confidence_level,
    )
