"""An evaluation as CSV files, and predictions read back from them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError
from finetune.evaluation.evaluate import ClassScores, Evaluation
from finetune.evaluation.scores import Floats, Integers
from finetune.files import atomic_write

PREFIX = "p:"  # of the columns that hold a class's probability
LARGE = 200_000  # numbers; from here on fewer digits keep the file below 20 MB


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """Rows of a ``predictions.csv``.

    Attributes:
        paths: ``N`` names of images, as written.
        labels: ``(N,)`` indexes into ``class_names``; -1 where the file tells no label.
        probabilities: ``(N, C)``.
    """

    paths: tuple[str, ...] = field(repr=False)
    labels: Integers = field(repr=False)
    probabilities: Floats = field(repr=False)
    class_names: tuple[str, ...]


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """``path, label, prediction, confidence`` and one column ``p:<class>`` for each class."""
    names = evaluation.class_names
    written = _short if evaluation.probabilities.size > LARGE else _exact
    rows = zip(
        evaluation.paths,
        evaluation.labels.tolist(),
        evaluation.predictions.tolist(),
        evaluation.probabilities.tolist(),
        strict=True,
    )
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "prediction", "confidence", *(PREFIX + n for n in names)])
        for image, label, prediction, row in rows:
            close = 0.9 * row[prediction]  # rounded, these could overtake the answer
            numbers = [_exact(value) if value > close else written(value) for value in row]
            writer.writerow([image, names[label], names[prediction], numbers[prediction], *numbers])


def write_per_class(path: Path, scores: Sequence[ClassScores]) -> None:
    """One row a class; an undefined figure is an empty field."""
    rows = [{name: _rounded(value) for name, value in s.to_dict().items()} for s in scores]
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_predictions(path: Path) -> PredictionTable:
    """Read a ``predictions.csv``, ours or another tool's with the same columns.

    Needed are ``path`` and at least two columns ``p:<class>``; ``label`` may be missing or empty.

    Raises:
        DataError: the columns or a row are not what they should be.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Expected a CSV file of predictions at {path}: {error}") from error
    header = rows[0] if rows else []
    columns = [i for i, name in enumerate(header) if name.startswith(PREFIX)]
    if "path" not in header or len(columns) < 2:
        raise DataError(
            f"{path}: expected columns path, label and one '{PREFIX}<class>' for each of at least "
            f"two classes, found {header[:6]}; write it with `finetune predict` or `finetune test`."
        )
    if len(set(header)) != len(header):
        raise DataError(f"{path}: expected each column once, found one twice; rename it.")
    class_names = tuple(header[i].removeprefix(PREFIX) for i in columns)
    return PredictionTable(
        paths=tuple(row[header.index("path")] for row in _complete(path, rows)),
        labels=_labels(path, rows, class_names),
        probabilities=_probabilities(path, rows, columns),
        class_names=class_names,
    )


def _complete(path: Path, rows: list[list[str]]) -> Iterable[list[str]]:
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(rows[0]):
            raise DataError(
                f"{path}: expected {len(rows[0])} fields in row {number}, found {len(row)}."
            )
        if row:
            yield row


def _labels(path: Path, rows: list[list[str]], class_names: tuple[str, ...]) -> Integers:
    if "label" not in rows[0]:
        return np.full(len(list(_complete(path, rows))), -1, dtype=np.int64)
    column = rows[0].index("label")
    index = {"": -1, **{name: i for i, name in enumerate(class_names)}}
    labels = [row[column] for row in _complete(path, rows)]
    unknown = sorted({label for label in labels if label not in index})
    if unknown:
        raise DataError(
            f"{path}: expected labels among the {len(class_names)} classes of its '{PREFIX}' "
            f"columns, found {unknown[:5]}; correct them, or leave the label empty."
        )
    return np.array([index[label] for label in labels], dtype=np.int64)


def _probabilities(path: Path, rows: list[list[str]], columns: list[int]) -> Floats:
    try:
        values = [[float(row[i]) for i in columns] for row in _complete(path, rows)]
    except ValueError as error:
        raise DataError(f"{path}: expected a number in every '{PREFIX}' column: {error}") from error
    return np.array(values, dtype=np.float64).reshape(-1, len(columns))


def _exact(probability: float) -> str:
    return f"{probability:.9g}"  # nine digits keep a float32


def _short(probability: float) -> str:
    """Digits where they count, four for answers and two for next to nothing; no leading zero."""
    if probability < 1e-3:
        return f"{probability:.2g}".replace("e-0", "e-")
    return f"{probability:.{4 if probability >= 0.1 else 3}g}".removeprefix("0")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 6)
    return "" if value is None else value
