"""An evaluation as CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.evaluation.result import ClassScores, Evaluation
from finetune.files import atomic_write
from finetune.tables.writing import open_table


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """``path, label, prediction, confidence`` and one column ``p:<class>`` for each class."""
    names = evaluation.class_names
    rows = zip(
        evaluation.paths,
        evaluation.labels.tolist(),
        evaluation.predictions.tolist(),
        evaluation.confidences.tolist(),
        evaluation.log_probabilities.tolist(),
        strict=True,
    )
    with open_table(path, names) as write:
        for image, label, prediction, confidence, log_probabilities in rows:
            row = {"path": image, "label": names[label], "prediction": names[prediction]}
            write({**row, "confidence": confidence}, log_probabilities)


def write_per_class(path: Path, scores: Sequence[ClassScores]) -> None:
    """One row a class; an undefined figure is an empty field."""
    rows = [{name: _rounded(value) for name, value in s.to_dict().items()} for s in scores]
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 6)
    return "" if value is None else value
