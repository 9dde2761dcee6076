"""The one place where a checkpoint's content is judged: plain values, then tensors.

A file may come from a stranger. Nothing in it is believed before it was here: every reader, of
classifiers and ensembles alike, goes through :func:`check_content`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import CheckpointError, CheckpointMismatchError, TrainingError
from finetune.spec.checkpoint_entry import (
    CLASSIFIER,
    ENSEMBLE,
    HEAD,
    HYPER_PARAMETERS,
    matching_channels,
)
from finetune.spec.schema import UnexpectedValue, by_name, record, several, text, truth
from finetune.tasks.known import task_of
from finetune.tasks.task import Task

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
# What every network computes with: no whole number takes the place of these.
_WEIGHTS = ("weight", "bias", "running_mean", "running_var")


def check_content(content: Mapping[str, Any], entry_name: str, path: str | Path) -> None:
    """Refuse a checkpoint whose values are not what they should be.

    Tensors are judged by what describes them, which reads none: a mapped file stays mapped. Whether
    they are finite, :func:`check_finite` tells where they are read.

    Raises:
        CheckpointError: the first value that is odd, or a task of a later version.
    """
    try:
        by_name(_anything)(content)
        entry = content[entry_name]
        HEAD(entry)
        task = task_of(entry, path)
        record({"state_dict": by_name(_tensor)})(content)
        for name, tensor in content["state_dict"].items():
            _weight(name, tensor)
        _familiar(entry.get("unknown"))
        if entry["kind"] == "ensemble":
            ENSEMBLE(entry)
            _names(task, entry["class_names"])
        else:
            record({"hyper_parameters": HYPER_PARAMETERS})(content)
            CLASSIFIER(entry)
            matching_channels(entry, content["hyper_parameters"])
            _names(task, entry["class_names"])
            _answers(entry.get("val"), task, task.number_of_outputs(entry["class_names"]))
    except UnexpectedValue as error:
        raise damaged(path, str(error)) from None


def damaged(path: str | Path, found: str) -> CheckpointError:
    """The error for a file that is one of ours and says what cannot be."""
    return CheckpointError(
        f"Expected a checkpoint of finetune in {path}, found it damaged: "
        f"{' '.join(found.split())[:300]}; take another copy."
    )


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that are NaN or infinite, or would be so in single precision.

    Raises:
        CheckpointError: the first of them is named.
    """
    most = torch.finfo(torch.float32).max
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = (float(value) for value in torch.aminmax(tensor.detach()))
            if not (-most <= low and high <= most):
                raise damaged(path, f"{name} holds NaN or infinity")


def check_tensors(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str | Path, *, expected: str
) -> None:
    """Refuse weights that are not exactly a network's: names, shapes, kinds, and finite values.

    Args:
        own: the network's.
        given, source: a file's, and its name.
        expected: what the network is, for the message.

    Raises:
        CheckpointMismatchError: names, shapes or kinds differ; the first ones are listed.
        CheckpointError: a value is NaN or infinite.
    """
    shapes, others = ({name: value.shape for name, value in each.items()} for each in (own, given))
    if shapes != others:
        names = sorted(shapes.keys() | others.keys())
        differing = [name for name in names if shapes.get(name) != others.get(name)]
        raise CheckpointMismatchError(
            f"Expected the tensors of {expected}, found others in {source}: "
            f"{', '.join(differing[:3])}; leave --model.* options to the checkpoint."
        )
    check_dtypes(own, given, source)
    check_finite(given, source)


def check_dtypes(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str | Path
) -> None:
    """Refuse tensors of another kind than the network's; kinds of floating point may differ.

    Raises:
        CheckpointMismatchError: the first of them is named.
    """
    for name, tensor in given.items():
        wanted = own[name].dtype
        if tensor.dtype != wanted and not {tensor.dtype, wanted} <= FLOATS:
            raise CheckpointMismatchError(
                f"Expected {name} in {source} as {wanted}, found {tensor.dtype}; take another copy."
            )


def _anything(value: Any) -> None:
    """Parts of a checkpoint that this project does not read."""


def _names(task: Task, names: Any) -> None:
    try:
        task.checked_names(names)
    except TrainingError as error:
        raise UnexpectedValue(f"names of the task {task.name}", str(error)[:80]) from None


def _tensor(value: Any) -> None:
    """A dense tensor of this machine's memory, with as many values as it claims."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        raise UnexpectedValue("a dense tensor", value)
    if value.device.type != "cpu" or value.is_quantized or value.dtype not in FLOATS | INTEGERS:
        raise UnexpectedValue("a tensor of plain numbers", f"{value.dtype} on {value.device}")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise UnexpectedValue("a tensor with all of its values", f"{tuple(value.shape)} of fewer")


def _weight(name: str, tensor: Tensor) -> None:
    if name.rpartition(".")[2] in _WEIGHTS and tensor.dtype not in FLOATS:
        raise UnexpectedValue("floating point", str(tensor.dtype), ("state_dict", name))


def _answers(val: Any, task: Task, outputs: int) -> None:
    """The last validation: ``logits (N, K)``, the task's targets as ``labels``, and N paths."""
    if val is None:
        return
    kept = {"logits": _tensor, "labels": _tensor, "paths": several(text())}
    record(kept, ids=several(text(200)), out_of_fold=truth)(val)
    logits, labels, images = val["logits"], val["labels"], len(val["paths"])
    if logits.dtype not in FLOATS or tuple(logits.shape) != (images, outputs):
        raise UnexpectedValue(f"({images}, {outputs}) numbers", _says(logits), ("val", "logits"))
    if val.get("out_of_fold") and len(val.get("ids", ())) != images:
        raise UnexpectedValue("an id of each image", val.get("ids"), ("val", "ids"))
    if not bool(logits.isfinite().all()):
        raise UnexpectedValue("finite", "NaN or infinity", ("val", "logits"))
    if (odd := task.unexpected(labels, images, outputs)) is not None:
        raise UnexpectedValue(f"targets of the task {task.name}", odd, ("val", "labels"))


def _familiar(unknown: Any) -> None:
    """What was learnt from: ``rows (K, D)``, ``directions (R, D)``, ``offsets (K,)``, float32."""
    if unknown is None:
        return
    record({"rows": _tensor, "directions": _tensor, "offsets": _tensor})(unknown)
    rows, directions, offsets = (unknown[name] for name in ("rows", "directions", "offsets"))
    for name, tensor in (("rows", rows), ("directions", directions), ("offsets", offsets)):
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise UnexpectedValue("finite float32 numbers", _says(tensor), ("unknown", name))
    shapes = rows.ndim == directions.ndim == 2 and offsets.ndim == 1 and rows.numel() > 0
    if not shapes or directions.shape[1] != rows.shape[1] or len(offsets) != len(rows):
        found = ", ".join(map(_says, (rows, directions, offsets)))
        raise UnexpectedValue("(K, D) rows, (R, D) directions, (K,) offsets", found, ("unknown",))


def _says(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
