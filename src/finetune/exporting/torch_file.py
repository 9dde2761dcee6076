"""``torch.export``: a program that torch runs without the code that made it."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.combining.ensemble import Ensemble
from finetune.exporting.description import as_json, describe_export
from finetune.exporting.parity import Reloaded
from finetune.exporting.tracing import trace

EXTRA_FILE = "finetune.json"


def write_torch(ensemble: Ensemble, path: Path) -> Reloaded:
    """Write a ``.pt2`` file with the description as its extra file ``finetune.json``.

    Raises:
        ExportError: a network that cannot be traced.
    """
    extra_files = {EXTRA_FILE: as_json(describe_export(ensemble))}
    torch.export.save(trace(ensemble), path, extra_files=extra_files)
    program = torch.export.load(path).module()
    return lambda views: program(*views)
