"""Ensembles on disk: one file of plain values and tensors, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from finetune.combining.decisions import Calibration
from finetune.combining.members import ClassifierMember, Member, TableMember
from finetune.errors import CheckpointError, UsageError
from finetune.preprocessing import Preprocessing
from finetune.training.checkpoint_schema import damaged
from finetune.training.checkpoints import (
    ENTRY,
    VERSION,
    Checkpoint,
    plain,
    read_checkpoint,
    read_content,
    save_atomically,
)

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


def fitted_data(path: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    """How a fit split its pictures: its settings, and the ``split.csv`` of its run folder."""
    data = dict(details.get("data") or {})
    split = path.absolute().parent.parent / "split.csv"
    if data and not data.get("manifest") and path.parent.name == "checkpoints" and split.is_file():
        data["manifest"] = str(split)
    return data


def load_member(path: str | Path, ensemble_type: type[E]) -> Member:
    """A checkpoint, another ensemble or a predictions CSV as a member.

    Raises:
        CheckpointError: the file is none of these.
    """
    path = checkpoint_file(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        return TableMember.from_csv(path)
    entry = read_content(path, mmap=True)[ENTRY]
    if entry["kind"] == "ensemble":
        ensemble = load_ensemble(path, ensemble_type)
        ensemble.name = str(path)
        return ensemble
    if entry.get("calibration"):  # its answers are the calibrated ones
        ensemble = load_ensemble(path, ensemble_type)
        ensemble.name = str(path)
        return ensemble
    return _classifier_member(path)


def _classifier_member(path: Path) -> ClassifierMember:
    member = ClassifierMember.from_checkpoint(read_checkpoint(path), str(path))
    data = fitted_data(path, member.classifier.details)
    if data:
        member.classifier.details = {**member.classifier.details, "data": data}
    return member


def load_ensemble(path: str | Path, ensemble_type: type[E]) -> E:
    """An ensemble's file; a classifier's checkpoint becomes an ensemble of one.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    path = checkpoint_file(path)
    content = read_content(path)
    entry = content[ENTRY]
    if entry["kind"] == "classifier":
        member = _classifier_member(path)
        calibration = member.classifier.details.get("calibration")
        return ensemble_type(
            [member],
            calibration=Calibration.from_dict(calibration) if calibration else None,
            roles=member.classifier.details.get("roles"),
        )
    try:
        return build_ensemble(entry, content["state_dict"], ensemble_type, path)
    except (KeyError, TypeError, ValueError, IndexError, UsageError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def save_ensemble(ensemble: Ensemble, path: str | Path) -> None:
    """Write beside the target, then rename."""
    # detach, not clone: members that share a backbone share its tensors in the file, too.
    state_dict = {name: tensor.detach().cpu() for name, tensor in ensemble.state_dict().items()}
    entry = plain(ensemble.describe())
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
        names, paths, table = described["class_names"], described["paths"], tensors["table"]
        if tuple(table.shape) != (len(paths), len(names)) or not table.is_floating_point():
            raise ValueError(f"expected ({len(paths)}, {len(names)}) probabilities")
        return TableMember(described["name"], names, paths, table)
    checkpoint = Checkpoint(
        path=path,
        state_dict={name.removeprefix("classifier."): t for name, t in tensors.items()},
        hyper_parameters=dict(described["hyper_parameters"]),
        class_names=tuple(described["class_names"]),
        backbone=described["backbone"],
        preprocessing=Preprocessing.from_dict(described["preprocessing"]),
        details={key: described[key] for key in ("data", "further_data") if key in described},
    )
    return ClassifierMember.from_checkpoint(checkpoint, described["name"])
