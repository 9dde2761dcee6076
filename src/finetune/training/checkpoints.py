"""Checkpoints that need nothing else: classes, preprocessing and network in one file, read safely.

The file is Lightning's checkpoint (``state_dict``, ``hyper_parameters``, and for resuming the
optimizer's state) with one entry more, ``finetune``, made of plain values and tensors::

    version: 2                         1: without the network, which is then found by its name
    kind: classifier | ensemble
    task: multiclass                   what is predicted; earlier versions: without
    class_names: [str, ...]            backbone: str, as it was asked for
    network: {architecture, arguments, tag}       all that builds it again, offline
    preprocessing: {image_size, mean, std, crop_fraction, interpolation}
    licence: str                       of the published weights that it began with, where known
    data: {...}                        settings of the data
    split: {...}                       the side of every image, see ``finetune.spec.splits``
    val: {logits (N, C), labels (N,), paths, ids}      the last validation, for combining and
                                       calibrating; paths are below the folder of the images
    thresholds: [...]                  of several labels an image, where ``val`` does not tell: from
                                       which probability on each is named
    unknown: {rows, directions, ...}   which images are of no class, where that was calibrated
    calibration, provenance: {...}     where something was fitted or combined afterwards
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.errors import CheckpointError
from finetune.files import atomic_write
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.known import task_of
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task
from finetune.training.checkpoint_schema import check_content, check_finite
from finetune.training.checksums import CHECKSUMS, signed, verify

VERSION = 2
ENTRY = "finetune"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file says, before any network is built.

    Attributes:
        path: where it was read.
        state_dict: the classifier's tensors; the network's names start with ``network.``.
        hyper_parameters: plain constructor arguments of the classifier.
        task, class_names, backbone, network, preprocessing: what the weights belong to.
        details: the rest of the ``finetune`` entry: ``data``, ``val``, ``calibration``, ...
    """

    path: Path
    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    task: Task
    class_names: tuple[str, ...]
    backbone: str
    network: NetworkSpec
    preprocessing: Preprocessing
    details: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> Checkpoint:
    """Read a classifier's checkpoint, whoever wrote it, without unpickling code.

    Args:
        path: a ``.ckpt`` file of this project.
        mmap: map tensors from the file instead of reading them, for averages of many; only what
            the entry says is verified then.

    Raises:
        CheckpointError: no such file, no checkpoint, one of other software, or a newer version.

    Examples:
        >>> checkpoint = finetune.read_checkpoint("runs/pets-1/checkpoints/best.ckpt")
        >>> checkpoint.backbone, checkpoint.class_names
        ('test_resnet', ('cat', 'dog'))
    """
    return as_checkpoint(read_content(path, mmap=mmap), path)


def as_checkpoint(content: Mapping[str, Any], path: str | Path) -> Checkpoint:
    """What :func:`read_content` has read of one classifier; ``path`` is for messages.

    Raises:
        CheckpointError: an ensemble, or a damaged file.
    """
    entry = content[ENTRY]
    if entry["kind"] != "classifier":
        raise CheckpointError(
            f"Expected one classifier in {path}, found an {entry['kind']}; "
            "open it with finetune.Ensemble.from_file."
        )
    try:
        return Checkpoint(
            path=Path(path),
            state_dict=dict(content["state_dict"]),
            hyper_parameters={
                key: value
                for key, value in content["hyper_parameters"].items()
                if not key.startswith("_")  # Lightning's own notes
            },
            task=task_of(entry, path),
            class_names=tuple(entry["class_names"]),
            backbone=entry["backbone"],
            network=network_of(entry, content["hyper_parameters"]),
            preprocessing=Preprocessing.from_dict(entry["preprocessing"]),
            details={key: value for key, value in entry.items() if key not in _FIELDS},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"Expected classes, backbone, preprocessing and weights in {path}, found the file "
            f"damaged ({type(error).__name__}: {error}); take another copy."
        ) from error


_FIELDS = {field.name for field in fields(Checkpoint)} | {"version", "kind", CHECKSUMS}


def network_of(entry: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> NetworkSpec:
    """Which network an entry describes.

    Of version 1 there are only its name and options, which are looked up once more.
    """
    if "network" in entry:
        return NetworkSpec.from_dict(entry["network"])
    from finetune.networks.factory import network_spec  # late: timm, for old files alone

    return network_spec(
        entry["backbone"],
        in_chans=hyper_parameters.get("in_chans", 3),
        image_size=hyper_parameters.get("image_size"),
        **(hyper_parameters.get("network_options") or {}),
    )


def read_content(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The whole checkpoint dictionary, checked to be one of ours; see :func:`read_checkpoint`.

    What is mapped is not verified by its checksum before it is read: whoever reads the weights of
    a mapped file calls :func:`finetune.training.checksums.verify`.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"Expected a checkpoint, found no file {path}; check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle protocol of strangers
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
    except Exception as error:  # a stranger's bytes make the reader fail in every way
        raise CheckpointError(
            f"Expected a checkpoint in {path}, found a file that is none or holds code, "
            "which is never run; give RUN/checkpoints/best.ckpt."
        ) from error
    entry = content.get(ENTRY) if isinstance(content, dict) else None
    if not isinstance(entry, dict) or "kind" not in entry:
        raise CheckpointError(
            f"Expected a checkpoint that `finetune fit` wrote in {path}, found one of other "
            "software; weights alone go to --model.pretrained."
        )
    version = entry.get("version", 0)
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"Expected version {VERSION} or older in {path}, found {entry['version']}; "
            "update finetune."
        )
    check_content(content, ENTRY, path)
    verify(content, ENTRY, path, parts=(ENTRY,) if mmap else None)
    if not mmap:
        check_finite(content["state_dict"], path)
    return content


def write_checkpoint(
    path: str | Path,
    *,
    state_dict: Mapping[str, Tensor],
    hyper_parameters: Mapping[str, Any],
    entry: Mapping[str, Any],
) -> None:
    """Write a checkpoint that Lightning and :func:`read_checkpoint` read.

    Args:
        path: replaced only once the new file is complete.
        state_dict: the classifier's tensors.
        hyper_parameters: constructor arguments; converted to plain values.
        entry: what :func:`describe` returns, perhaps with more details.
    """
    content = {
        "state_dict": dict(state_dict),
        "hyper_parameters": plain(dict(hyper_parameters)),
        ENTRY: dict(entry),
        # Lightning asks for these even where there is nothing to resume.
        "pytorch-lightning_version": "2.6.6",
        "epoch": 0,
        "global_step": 0,
    }
    save_atomically(content, path)


def save_atomically(content: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save`` with checksums, beside the target, then rename: never a half-written file.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as beside, beside.open("wb") as file:
        try:
            # Into an open file: a path would become part of the content.
            torch.save(signed(content, ENTRY) if ENTRY in content else dict(content), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk; torch hides the reason
                raise error.__context__ from None
            raise


def describe(
    class_names: tuple[str, ...],
    backbone: str,
    preprocessing: Preprocessing,
    *,
    network: NetworkSpec,
    task: Task = MULTICLASS,
    **details: Any,
) -> dict[str, Any]:
    """The ``finetune`` entry of a classifier's checkpoint."""
    return {
        "version": VERSION,
        "kind": "classifier",
        "task": task.name,
        "class_names": list(class_names),
        "backbone": backbone,
        "network": network.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        **details,
    }


def plain(value: Any) -> Any:
    """The same value in the types that ``weights_only=True`` reads back.

    Paths become strings, NumPy scalars and arrays numbers and lists; containers are converted
    through and through.

    Raises:
        TypeError: the value has no plain form.
    """
    match value:
        case None | bool() | int() | float() | str() if not isinstance(value, np.generic):
            return value
        case np.generic():
            return value.item()
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return {plain(key): plain(item) for key, item in value.items()}
        case np.ndarray():
            return value.tolist()
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    raise TypeError(
        f"Expected text, numbers, lists or dictionaries as settings, found {type(value).__name__}; "
        "pass plain values."
    )
