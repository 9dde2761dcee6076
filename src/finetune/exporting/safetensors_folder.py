"""safetensors and JSON: weights and description for whoever builds the network anew."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from finetune.combining.ensemble import Ensemble
from finetune.combining.ensemble_file import build_ensemble
from finetune.errors import CheckpointError, ExportError
from finetune.exporting.copying import only_classifier
from finetune.exporting.description import as_json, describe_export, ensemble_entry
from finetune.exporting.parity import Reloaded
from finetune.exporting.tracing import ProbabilityGraph
from finetune.files import write_text
from finetune.training.checkpoint_schema import check_content
from finetune.training.checkpoints import ENTRY

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Where the network of an ensemble of one stands in its state dict.
ALONE = "members.0.classifier.network."


def write_safetensors(ensemble: Ensemble, beside: Path) -> Reloaded:
    """Write ``model.safetensors`` and ``config.json`` into a new folder ``beside`` the target.

    A single classifier's tensors are named as in its network, so that timm's loads them; those of
    an ensemble, and of numbers with their unit beside the network, begin with
    ``members.<i>.classifier.network.``. Tensors that members share stand in the file once; its
    metadata maps the other names to the one that is there.
    """
    classifier = only_classifier(ensemble)
    alone = classifier is not None and not classifier.unit.state_dict()
    module = classifier.network if classifier is not None and alone else ensemble
    safetensors.torch.save_model(module, str(beside / WEIGHTS))
    write_text(beside / CONFIG, as_json(describe_export(ensemble)))
    graph = ProbabilityGraph(read_safetensors(beside))
    return lambda views: graph(*views)


def read_safetensors(path: str | Path) -> Ensemble:
    """The ensemble in a folder that :func:`write_safetensors` wrote; a classifier is one of one.

    Raises:
        ExportError: the folder holds something else.
    """
    path = Path(path)
    try:
        description = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        with safe_open(path / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = file.metadata() or {}
        shared = {name: tensors[kept] for name, kept in notes.items() if kept in tensors}
        tensors |= shared
        if not any(name.startswith("members.0.") for name in tensors):
            tensors = {f"{ALONE}{name}": tensor for name, tensor in tensors.items()}
        entry = ensemble_entry(description)
        check_content({"state_dict": tensors, ENTRY: entry}, ENTRY, path / WEIGHTS)
        return build_ensemble(entry, tensors, Ensemble, path / WEIGHTS)
    except (OSError, SafetensorError, CheckpointError, LookupError, TypeError, ValueError) as error:
        raise ExportError(
            f"Expected {WEIGHTS} and {CONFIG} of an export in {path}, found other or damaged files "
            f"({type(error).__name__}: {error}); export the checkpoint again."
        ) from error
