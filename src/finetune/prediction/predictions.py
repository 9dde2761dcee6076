"""The answers for some images, and their rows in tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.errors import UsageError
from finetune.spec.labels import NOT_KNOWN, THRESHOLD
from finetune.tables.cells import PREFIX
from finetune.tables.writing import Write, open_table
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import offsets
from finetune.tasks.task import Task


@dataclass(frozen=True)
class Predictions:
    """The answers for some images.

    Attributes:
        task: what is predicted.
        paths: one an image, as given.
        probabilities: ``(N, C)``; rows sum to 1. Of numbers they themselves, ``(N, 1)``.
        logits: ``(N, C)``, of which the probabilities are: they tell also answers apart whose
            probability is too small for a float.
        class_names: of the columns.
        member_probabilities: ``(M, N, C)``; a single classifier is one member.
        disagreement: share of the pairs of members that name different classes, ``(N,)``; of
            numbers the members' standard deviation, in the user's unit.
        rejected: ``(N,)`` bool, which answers to leave to a human; None without a reject rule.
        prediction_sets: ``(N, C)`` bool, the classes that may be true; None without conformal
            calibration.
        thresholds: of several labels an image, from which probability on each is named; None
            otherwise.
        half_width: of the interval about each number, in its unit; None without calibration.
        strangeness: distance from all that was learnt over the largest that is not refused,
            ``(N,)`` float64, at least 0; None where nothing was calibrated for unknown images.
        skipped: images that could not be read, with the reason; only with
            ``on_bad_image="skip"``.

    Examples:
        >>> answers = finetune.load("runs/pets-1")("new")
        >>> [path.name for path in answers.paths], answers.unknown
        (['1.png', '2.png', '3.png'], None)
        >>> set(answers.labels) <= {"cat", "dog"}
        True
        >>> answers.to_csv("answers.csv")
    """

    task: Task
    paths: tuple[Path, ...]
    probabilities: Tensor
    logits: Tensor
    class_names: tuple[str, ...]
    member_probabilities: Tensor
    disagreement: Tensor | None = None
    rejected: Tensor | None = None
    prediction_sets: Tensor | None = None
    thresholds: tuple[float, ...] | None = None
    half_width: float | None = None
    strangeness: Tensor | None = None
    skipped: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image; of several labels those named, with ``|``.

        Of numbers six digits; ``logits`` and ``probabilities`` hold them whole.
        """
        return self.task.named(self._margins, self.class_names)

    @property
    def _margins(self) -> Tensor:
        """The logits, each less that of its threshold, where there are thresholds."""
        if self.thresholds is None:
            return self.logits
        return self.logits.double() - offsets(self.thresholds, len(self.class_names))

    @property
    def confidences(self) -> Tensor:
        """Probability of what is named, ``(N,)``; of several labels that of the least sure."""
        return self.task.confidence(self.logits, self.thresholds)

    @property
    def unknown(self) -> Tensor | None:
        """Which images are of no class that was learnt, ``(N,)`` bool: stranger than 1."""
        return None if self.strangeness is None else self.strangeness > 1

    def rows(self, *, top_k: int = 1) -> Iterator[dict[str, Any]]:
        """One dictionary an image: what :meth:`write` writes, probabilities as numbers."""
        if not self.columns:
            yield from self._columns(top_k)
            return
        values = self.probabilities.tolist()
        for row, probabilities in zip(self._columns(top_k), values, strict=True):
            named = zip(self.class_names, probabilities, strict=True)
            yield row | {f"{PREFIX}{name}": value for name, value in named}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that get a column of probabilities; of numbers none."""
        return columns_of(self.task, self.class_names)

    def write(self, write: Write, *, top_k: int = 1) -> None:
        """Add a row an image to an open table: ``path, label`` (empty), ``prediction, confidence``.

        Then come further ranks (``prediction_2``, ...), ``disagreement`` where there are several
        members, ``rejected`` (true or false), ``prediction_set`` (names joined by ``|``),
        ``strangeness`` and ``unknown`` (true or false) where there are such rules, and
        ``p:<class>``. Of several labels an image the label is ``?``, further ranks are ``top_1``,
        ``top_1_probability``, ..., and ``t:<label>`` are the thresholds. Of numbers ``prediction``
        is the number, ``lower`` and ``upper`` stand beside it where they are calibrated, and there
        is no confidence.

        Args:
            write: of :func:`finetune.tables.writing.open_table`, for :attr:`columns`.
            top_k: how many of the most probable classes to name; at most ``C``.
        """
        logs: Sequence[Sequence[float]] = [()] * len(self)
        if self.columns:
            logs = self.task.log_probabilities(self.logits.double()).tolist()
        for row, log_probabilities in zip(self._columns(top_k), logs, strict=True):
            write(row, log_probabilities)

    def to_csv(self, path: str | Path, *, safe: bool = False) -> None:
        """Write the rows as CSV, with that ending; the file appears when it is complete.

        Args:
            path: of the file.
            safe: names that a spreadsheet would take for formulas get an apostrophe.
        """
        with open_table(_ending_in(".csv", path), self.columns, safe=safe) as write:
            self.write(write)

    def to_parquet(self, path: str | Path) -> None:
        """Write the rows as Parquet, with that ending; the file appears when it is complete."""
        with open_table(_ending_in(".parquet", path), self.columns) as write:
            self.write(write)

    def _columns(self, top_k: int) -> Iterator[dict[str, Any]]:
        if self.columns:
            named = self._ranks(top_k) if self.task == MULTICLASS else self._sets(top_k)
        else:
            named = self._numbers(top_k)
        for index, (path, columns) in enumerate(zip(self.paths, named, strict=True)):
            row: dict[str, Any] = {"path": str(path), "label": "", **columns}
            if self.disagreement is not None and len(self.member_probabilities) > 1:
                row["disagreement"] = float(self.disagreement[index])
            if self.rejected is not None:
                row["rejected"] = str(bool(self.rejected[index])).lower()
            if self.prediction_sets is not None:
                members = self.prediction_sets[index].nonzero().flatten().tolist()
                row["prediction_set"] = "|".join(self.class_names[label] for label in members)
            if self.strangeness is not None:
                row["strangeness"] = float(self.strangeness[index])
                row["unknown"] = str(bool(self.strangeness[index] > 1)).lower()
            yield row

    def _ranks(self, top_k: int) -> Iterator[dict[str, Any]]:
        """The likeliest classes of each image and their probabilities."""
        ranked = self.logits.topk(min(top_k, len(self.class_names)), dim=-1).indices
        for index, labels in enumerate(ranked.tolist()):
            row: dict[str, Any] = {}
            for rank, label in enumerate(labels, start=1):
                suffix = "" if rank == 1 else f"_{rank}"
                row[f"prediction{suffix}"] = self.class_names[label]
                row[f"confidence{suffix}"] = float(self.probabilities[index, label])
            yield row

    def _sets(self, top_k: int) -> Iterator[dict[str, Any]]:
        """The labels of each image, how sure the least sure answer is, the likeliest, thresholds.

        No true labels are known, which an empty cell would not say: it is an image without any.
        """
        names = self.class_names
        bounds = dict(zip(names, self.thresholds or (0.5,) * len(names), strict=True))
        ranked = self.logits.topk(min(top_k, len(names)), dim=-1).indices.tolist()
        named = zip(self.labels, self.confidences.tolist(), ranked, strict=True)
        for index, (labels, confidence, likeliest) in enumerate(named):
            row = {"label": NOT_KNOWN, "prediction": labels, "confidence": confidence}
            for rank, label in enumerate(likeliest if top_k > 1 else (), start=1):
                row[f"top_{rank}"] = names[label]
                row[f"top_{rank}_probability"] = float(self.probabilities[index, label])
            yield row | {f"{THRESHOLD}{name}": bound for name, bound in bounds.items()}

    def _numbers(self, top_k: int) -> Iterator[dict[str, Any]]:
        """Each image's number, and the interval about it where there is one."""
        if top_k > 1:
            raise UsageError(f"Expected --topk 1 for numbers, found {top_k}; leave it out.")
        for value in self.probabilities[:, 0].double().tolist():
            row = {"prediction": value}
            if self.half_width is not None:
                row |= {"lower": value - self.half_width, "upper": value + self.half_width}
            yield row


def columns_of(task: Task, class_names: Sequence[str]) -> tuple[str, ...]:
    """The names that get a column of probabilities in a table; of numbers none."""
    return tuple(class_names) if task.has_choices else ()


def _ending_in(suffix: str, path: str | Path) -> Path:
    """The path with the ending, which it may have already; other dots belong to its name."""
    path = Path(path)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)
