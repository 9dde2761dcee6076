"""``torch.export``: a program that torch runs without the code that made it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch

from finetune.combining.ensemble import Ensemble
from finetune.exporting.description import as_json, describe_export
from finetune.exporting.parity import Reloaded
from finetune.exporting.tracing import trace

EXTRA_FILE = "finetune.json"


def write_torch(ensemble: Ensemble, beside: Path) -> Reloaded:
    """Write a ``.pt2`` file with the description as its extra file ``finetune.json``.

    Raises:
        ExportError: a network that cannot be traced.
    """
    extra_files = {EXTRA_FILE: as_json(describe_export(ensemble))}
    content = BytesIO()  # on a full disk torch's own writer ends the interpreter
    torch.export.save(trace(ensemble), content, extra_files=extra_files)
    beside.write_bytes(content.getbuffer())
    program = torch.export.load(beside).module()
    return lambda views: program(*views)
