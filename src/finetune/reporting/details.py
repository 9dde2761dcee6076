"""What a report can tell beside the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.reporting.curves import Curve


class DataFinding(Protocol):
    """What is wrong with one file, and what to do about it."""

    @property
    def path(self) -> object:
        """The file."""

    @property
    def problem(self) -> str:
        """What is wrong."""

    @property
    def remedy(self) -> str:
        """What to do."""


@dataclass(frozen=True, eq=False)
class ReportDetails:
    """What a report can tell beside the evaluation; all of it may be missing.

    Attributes:
        root: folder that relative paths of images start from, for thumbnails.
        learning_curves: ``{"train/loss": [(epoch, value), ...], "lr-AdamW": ...}``.
        class_counts: images by split and class, for the class balance.
        embeddings: pooled features of the images ``(N, D)``, for a map and for label triage.
        settings, environment: nested mappings of plain values.
    """

    root: Path | None = None
    learning_curves: Mapping[str, Curve] | None = None
    class_counts: Mapping[str, Mapping[str, int]] | None = None
    embeddings: NDArray[np.floating] | None = None
    settings: Mapping[str, Any] | None = None
    findings: Sequence[DataFinding] | None = None
    environment: Mapping[str, Any] | None = None
