"""The answers for some pictures, and their rows in tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.answer_files import open_answer_file


@dataclass(frozen=True)
class Predictions:
    """The answers for some pictures.

    Attributes:
        paths: one a picture, as given.
        probabilities: ``(N, C)``; rows sum to 1.
        class_names: of the columns.
        member_probabilities: ``(M, N, C)``; a single classifier is one member.
        disagreement: share of the pairs of members that name different classes, ``(N,)``.
        rejected: ``(N,)`` bool, which answers to leave to a human; None without a reject rule.
        prediction_sets: ``(N, C)`` bool, the classes that may be true; None without conformal
            calibration.
        skipped: pictures that could not be read, with the reason; only with
            ``on_bad_image="skip"``.
    """

    paths: tuple[Path, ...]
    probabilities: Tensor
    class_names: tuple[str, ...]
    member_probabilities: Tensor
    disagreement: Tensor | None = None
    rejected: Tensor | None = None
    prediction_sets: Tensor | None = None
    skipped: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.class_names[index] for index in self.probabilities.argmax(dim=-1).tolist()]

    @property
    def confidences(self) -> Tensor:
        """Probability of the most probable class, ``(N,)``."""
        return self.probabilities.amax(dim=-1)

    def rows(self, *, top_k: int = 1) -> Iterator[dict[str, Any]]:
        """One dictionary a picture: :func:`answer_row`, and what ensembles and calibration add.

        ``disagreement`` where there are several members, ``rejected`` (true or false) and
        ``prediction_set`` (names joined by ``|``) where there are such rules.
        """
        for index, path in enumerate(self.paths):
            row = answer_row(path, self.probabilities[index], self.class_names, top_k=top_k)
            if self.disagreement is not None and len(self.member_probabilities) > 1:
                row["disagreement"] = float(self.disagreement[index])
            if self.rejected is not None:
                row["rejected"] = str(bool(self.rejected[index])).lower()
            if self.prediction_sets is not None:
                members = self.prediction_sets[index].nonzero().flatten().tolist()
                row["prediction_set"] = "|".join(self.class_names[label] for label in members)
            yield row

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as CSV, with that ending; the file appears when it is complete."""
        self._write(_ending_in(".csv", path))

    def to_parquet(self, path: str | Path) -> None:
        """Write the rows as Parquet, with that ending; the file appears when it is complete."""
        self._write(_ending_in(".parquet", path))

    def _write(self, path: Path) -> None:
        with open_answer_file(path) as write:
            for row in self.rows():
                write(row)


def _ending_in(suffix: str, path: str | Path) -> Path:
    """The path with the ending, which it may have already; other dots belong to its name."""
    path = Path(path)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def answer_row(
    path: Path, probabilities: Tensor, class_names: Sequence[str], *, top_k: int = 1
) -> dict[str, Any]:
    """``path, label`` (empty), ``prediction, confidence``, further ranks, then ``p:<class>``.

    Args:
        path: of the picture.
        probabilities: ``(C,)``.
        class_names: of the ``C`` classes.
        top_k: how many of the most probable classes to name; at most ``C``.
    """
    row: dict[str, Any] = {"path": str(path), "label": ""}
    ranked = probabilities.topk(min(top_k, len(class_names)))
    for rank, (value, index) in enumerate(
        zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True), start=1
    ):
        suffix = "" if rank == 1 else f"_{rank}"
        row[f"prediction{suffix}"] = class_names[index]
        row[f"confidence{suffix}"] = value
    values = zip(class_names, probabilities.tolist(), strict=True)
    return row | {f"p:{name}": value for name, value in values}
