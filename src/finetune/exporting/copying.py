"""What is exported: a copy of a classifier or an ensemble, always as an ensemble."""

from __future__ import annotations

from pathlib import Path

from finetune.combining.ensemble import Ensemble
from finetune.combining.ensemble_file import build_ensemble
from finetune.combining.members import ClassifierMember, TableMember
from finetune.errors import ExportError
from finetune.training.classifier import ImageClassifier

IN_MEMORY = Path("memory")  # where checkpoint errors name a file


def exportable_copy(model: ImageClassifier | Ensemble) -> Ensemble:
    """The same answers on the CPU, whatever the caller does to the original; calibration included.

    Raises:
        ExportError: a member is a table of saved predictions, at any depth.
    """
    ensemble = Ensemble.of(model)
    _refuse_tables(ensemble)
    tensors = {name: tensor.detach().cpu() for name, tensor in ensemble.state_dict().items()}
    return build_ensemble(ensemble.describe(), tensors, Ensemble, IN_MEMORY)


def only_classifier(ensemble: Ensemble) -> ImageClassifier | None:
    """The one classifier of an ensemble of one; None if there are more members."""
    first = ensemble.parts[0]
    alone = len(ensemble.parts) == 1 and isinstance(first, ClassifierMember)
    return first.classifier if alone and isinstance(first, ClassifierMember) else None


def _refuse_tables(ensemble: Ensemble) -> None:
    for member in ensemble.parts:
        if isinstance(member, Ensemble):
            _refuse_tables(member)
        elif isinstance(member, TableMember):
            raise ExportError(
                f"Expected members that look at images, found saved predictions, {member.name}; "
                "export an ensemble of checkpoints."
            )
