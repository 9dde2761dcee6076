"""What a report can tell beside the evaluation, and how a run folder tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.csv_table import own_rows
from finetune.documents import read_yaml
from finetune.reporting.curves import Curve, read_curves
from finetune.tasks.task import Task


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
        stage: "test", "val", "val, out of fold", or "" where nothing tells it.
        root: folder that relative paths of images start from, for thumbnails.
        learning_curves: ``{"train/loss": [(epoch, value), ...], "lr-AdamW": ...}``.
        class_counts: images by split and class, for the class balance.
        embeddings: pooled features of the images ``(N, D)``, for a map and for label triage.
        settings, environment: nested mappings of plain values.
        commands: that make the model and these figures once more.
    """

    stage: str = ""
    root: Path | None = None
    learning_curves: Mapping[str, Curve] | None = None
    class_counts: Mapping[str, Mapping[str, int]] | None = None
    embeddings: NDArray[np.floating] | None = None
    settings: Mapping[str, Any] | None = None
    findings: Sequence[DataFinding] | None = None
    environment: Mapping[str, Any] | None = None
    commands: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class BadImage:
    """A row of a run's ``bad_images.csv``."""

    path: str
    problem: str
    remedy: str


def read_details(folder: Path, task: Task, root: Path | None = None) -> ReportDetails:
    """What a run folder tells beside the answers: curves, settings, class balance, bad files."""
    config = folder / "config.yaml"
    settings = _settings(config)
    return ReportDetails(
        root=root_of(config) if root is None else root,
        learning_curves=read_curves(folder / "metrics.csv") or None,
        class_counts=_class_counts(folder / "split.csv", task),
        settings=settings,
        commands=[f"finetune fit --config {_from_here(config)}"] if settings else [],
        findings=[
            BadImage(row.get("path", ""), row.get("problem", ""), row.get("remedy", ""))
            for row in own_rows(folder / "bad_images.csv")
        ],
    )


def root_of(config: Path) -> Path | None:
    """The folder of the fit's images, as its configuration has it."""
    data = _settings(config).get("data")
    root = data.get("root") if isinstance(data, Mapping) else None
    return Path(str(root)) if root else None


def how_to_test(checkpoint: Path, details: ReportDetails) -> list[str]:
    """What judges a checkpoint once more, where it is known on which images."""
    if details.root is None:
        return []
    data = (details.settings or {}).get("data") or {}
    told = (
        f"finetune test --ckpt_path {_from_here(checkpoint)} --data.root {_from_here(details.root)}"
    )
    manifest = data.get("manifest") if Path(str(data.get("root"))) == details.root else None
    return [told if manifest is None else f"{told} --data.manifest {_from_here(Path(manifest))}"]


def _from_here(path: Path) -> str:
    """As one would type it."""
    here = Path.cwd()
    return quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _settings(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def _class_counts(path: Path, task: Task) -> dict[str, dict[str, int]] | None:
    counts: dict[str, dict[str, int]] = {}
    for row in own_rows(path):
        of_split = counts.setdefault(row.get("split") or "unsplit", {})
        for name in task.names_in(row.get("label", "")):
            of_split[name] = of_split.get(name, 0) + 1
    return {s: counts[s] for s in ("train", "val", "test", "unsplit") if counts.get(s)} or None
