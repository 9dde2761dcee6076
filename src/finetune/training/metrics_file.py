"""``metrics.json`` of a run folder: figures by stage, with one reader and one writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.documents import read_json
from finetune.files import write_text
from finetune.spec.run_files import METRICS

# Earlier versions said picture; what they wrote is read under the names of today.
_RENAMED = {"pictures": "images", "ms_per_picture": "ms_per_image"}


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``metrics.json`` holds, by stage; empty before the first figures.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / "metrics.json"
    stages = read_json(path, METRICS) if path.is_file() else {}
    return {
        stage: {_RENAMED.get(name, name): value for name, value in figures.items()}
        for stage, figures in stages.items()
    }


def write_metrics(folder: Path, stage: str, figures: Mapping[str, float | str]) -> None:
    """Put the figures of one stage beside those of the others."""
    stages = {**read_metrics(folder), stage: dict(figures)}
    write_text(folder / "metrics.json", json.dumps(stages, indent=2) + "\n")
