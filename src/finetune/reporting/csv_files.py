"""An evaluation as CSV files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.csv_table import csv_text
from finetune.evaluation.judgement import Judgement
from finetune.files import write_text
from finetune.prediction.predictions import columns_of
from finetune.tables.writing import open_table


def write_predictions(path: Path, evaluation: Judgement) -> None:
    """``path, label, prediction, confidence`` and one column ``p:<class>`` for each class.

    Of numbers ``path, label, prediction``, and ``lower, upper`` where there are intervals.
    """
    with open_table(path, columns_of(evaluation.task, evaluation.class_names)) as write:
        for index in range(len(evaluation.paths)):
            write(*evaluation.row(index))


def write_parts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a class or a label; an undefined figure is an empty field."""
    write_text(path, csv_text(list(rows[0]), ([*map(_rounded, row.values())] for row in rows)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 6)
    return value
