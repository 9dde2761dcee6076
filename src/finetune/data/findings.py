"""One thing worth knowing about a folder of images, and many of them as a table.

Three severities: an *error* would make a figure wrong (a file that cannot be read, a leak between
splits, a class missing from train), a *warning* deserves a look, a *note* is only said.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from finetune.csv_table import csv_text
from finetune.files import write_text

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing about a file or (``path`` a folder) about a class or the whole.

    ``kind`` is a short, stable word for programs; ``problem`` and ``remedy`` are for people.
    """

    path: Path
    kind: str
    severity: Severity
    problem: str
    remedy: str = ""


def write_findings(path: str | os.PathLike[str], findings: Iterable[Finding]) -> None:
    """Write findings as a CSV (``bad_images.csv`` of a run folder)."""
    columns = [field.name for field in fields(Finding)]
    write_text(Path(path), csv_text(columns, (astuple(each) for each in findings)))
