"""Ensembles on disk: one file of plain values and tensors, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from finetune.combining.calibrated_answer import Calibration
from finetune.combining.members import ClassifierMember, Member, TableMember
from finetune.combining.unknown import UnknownRule
from finetune.errors import CheckpointError, UsageError
from finetune.spec.preprocessing import Preprocessing
from finetune.tables.writing import ENDINGS
from finetune.tasks import categorical
from finetune.tasks.known import task_of
from finetune.training.checkpoint_schema import damaged
from finetune.training.checkpoints import (
    ENTRY,
    VERSION,
    Checkpoint,
    network_of,
    plain,
    read_checkpoint,
    read_content,
    save_atomically,
)
from finetune.training.fitted_splits import SPLIT_ENTRIES, with_fitted_split

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble

E = TypeVar("E", bound="Ensemble")


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the best checkpoint of a run folder.

    Raises:
        CheckpointError: neither.
    """
    path = Path(path)
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        if not best.is_file():
            raise CheckpointError(
                f"Expected checkpoints/best.ckpt in the run folder {path}, found none; "
                "give a checkpoint file."
            )
        return best
    return path


def load_member(path: str | Path, ensemble_type: type[E]) -> Member:
    """A checkpoint, another ensemble or a table of predictions as a member.

    Raises:
        CheckpointError: the file is none of these.
    """
    path = checkpoint_file(path)
    if path.suffix.lower() in ENDINGS and path.is_file():
        return TableMember.from_file(path)
    entry = read_content(path, mmap=True)[ENTRY]
    if entry["kind"] == "ensemble" or entry.get("calibration"):  # then its answers are those
        ensemble = load_ensemble(path, ensemble_type)
        ensemble.name = str(path)
        return ensemble
    return _classifier_member(path)


def _classifier_member(path: Path) -> ClassifierMember:
    checkpoint = read_checkpoint(path)
    checkpoint = replace(checkpoint, details=with_fitted_split(path, checkpoint.details))
    return ClassifierMember.from_checkpoint(checkpoint, str(path))


def load_ensemble(path: str | Path, ensemble_type: type[E]) -> E:
    """An ensemble's file; a classifier's checkpoint becomes an ensemble of one.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    path = checkpoint_file(path)
    content = read_content(path)
    entry = content[ENTRY]
    if entry["kind"] == "classifier":
        return ensemble_of_one(_classifier_member(path), ensemble_type)
    try:
        return build_ensemble(entry, content["state_dict"], ensemble_type, path)
    except (KeyError, TypeError, ValueError, IndexError, UsageError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def ensemble_of_one(member: ClassifierMember, ensemble_type: type[E]) -> E:
    """An ensemble that answers as a classifier does, by the rules that its checkpoint has."""
    details = member.classifier.details
    calibration = details.get("calibration")
    return ensemble_type(
        [member],
        calibration=Calibration.from_dict(calibration) if calibration else None,
        roles=details.get("roles"),
        unknown=UnknownRule.from_entry(details.get("unknown")),
    )


def save_ensemble(ensemble: Ensemble, path: str | Path) -> None:
    """Write beside the target, then rename."""
    own = ensemble.state_dict(keep_vars=True)
    # Each once: members that share a backbone share its tensors in the file, too.
    on_cpu = {id(tensor): tensor.detach().cpu() for tensor in own.values()}
    state_dict = {name: on_cpu[id(tensor)] for name, tensor in own.items()}
    entry = plain(ensemble.describe())
    if ensemble.unknown is not None:
        entry["unknown"] = ensemble.unknown.to_entry()
    content = {
        "state_dict": state_dict,
        "hyper_parameters": {},
        ENTRY: {"version": VERSION, **entry},
    }
    save_atomically(content, path)


def build_ensemble(
    entry: Mapping[str, Any], tensors: Mapping[str, Tensor], ensemble_type: type[E], path: Path
) -> E:
    """The ensemble that ``Ensemble.describe`` and ``state_dict`` tell of; ``path`` is for messages.

    Raises:
        CheckpointMismatchError: tensors that do not fit. KeyError, TypeError, ValueError: a
            description that lacks something.
    """
    members = []
    for index, described in enumerate(entry["members"]):
        prefix = f"members.{index}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        members.append(_build_member(described, own, ensemble_type, path))
    calibration = entry.get("calibration")
    ensemble = ensemble_type(
        members,
        coefficients=entry["coefficients"],
        pooling=entry["pooling"],
        class_names=entry["class_names"],
        calibration=Calibration.from_dict(calibration) if calibration else None,
        roles=entry.get("roles"),
        unknown=UnknownRule.from_entry(entry.get("unknown")),
    )
    ensemble.name = str(entry["name"])
    return ensemble


def _build_member(
    described: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    ensemble_type: type[E],
    path: Path,
) -> Member:
    if described["kind"] == "ensemble":
        return build_ensemble(described, tensors, ensemble_type, path)
    if described["kind"] == "predictions":
        names, paths = described["class_names"], described["paths"]
        logits = tensors.get("log_probabilities")
        if logits is None:  # a file of format 1, which kept probabilities
            logits = categorical.log_of(tensors["table"])
        if tuple(logits.shape) != (len(paths), len(names)) or not logits.is_floating_point():
            raise ValueError(f"expected ({len(paths)}, {len(names)}) log probabilities")
        task, thresholds = task_of(described, path), described.get("thresholds")
        return TableMember(
            described["name"], names, paths, logits, task=task, thresholds=thresholds
        )
    kept = (*SPLIT_ENTRIES, "licence", "thresholds", "out_of_fold")
    checkpoint = Checkpoint(
        path=path,
        state_dict={name.removeprefix("classifier."): t for name, t in tensors.items()},
        hyper_parameters=dict(described["hyper_parameters"]),
        task=task_of(described, path),
        class_names=tuple(described["class_names"]),
        backbone=described["backbone"],
        network=network_of(described, described["hyper_parameters"]),
        preprocessing=Preprocessing.from_dict(described["preprocessing"]),
        details={key: described[key] for key in kept if key in described},
    )
    member = ClassifierMember.from_checkpoint(checkpoint, described["name"])
    outputs = member.task.number_of_outputs(member.class_names)
    if any(tuple(answer.shape) != (outputs,) for answer in member.out_of_fold.values()):
        raise ValueError(f"expected {outputs} logits an image that is answered out of fold")
    return member
