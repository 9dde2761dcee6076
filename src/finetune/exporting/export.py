"""Write a classifier or an ensemble for other programs, and prove that the file answers alike."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import assert_never

from finetune.combining.ensemble import Ensemble
from finetune.exporting.copying import exportable_copy
from finetune.exporting.description import input_names, output_name
from finetune.exporting.onnx_file import write_onnx
from finetune.exporting.parity import Reloaded, check_parity
from finetune.exporting.safetensors_folder import write_safetensors
from finetune.exporting.targets import Format, check_target, written_beside
from finetune.exporting.timm_folder import write_timm
from finetune.exporting.torch_file import write_torch
from finetune.spec.preprocessing import Preprocessing
from finetune.training.classifier import ImageClassifier


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        inputs: name and preprocessing of each input, in the order of the graph's arguments.
        output: its name: ``probabilities``, or ``numbers``.
        class_names: of the output's columns.
        greatest_difference: of a probability, between the file and the classifier on random
            images; None where nothing is installed that runs the file.
    """

    path: Path
    inputs: dict[str, Preprocessing]
    output: str
    class_names: tuple[str, ...]
    greatest_difference: float | None


def export(
    classifier: ImageClassifier | Ensemble | str | PathLike[str],
    path: str | Path,
    *,
    format: Format = "onnx",
) -> Exported:
    """Write a file or folder that answers as the classifier does, and compare their answers.

    Graphs take images ``(B, C, S, S)`` in ``[0, 1]``, one tensor for each distinct preprocessing
    of the members, and return probabilities ``(B, classes)``, or numbers ``(B, 1)`` in the user's
    unit: normalisation, pooling and temperature are inside. Class names, preprocessing and
    calibration go along as JSON.

    Args:
        classifier: it stays as it is, wherever it is; or its file, or a run folder.
        path: replaced once the new one is complete and checked.
        format: ``onnx`` and ``torch`` (``torch.export``) write one file, ``.onnx`` or ``.pt2``;
            ``safetensors`` and ``timm`` a folder with ``model.safetensors`` and ``config.json``.

    Raises:
        UsageError: a path that the format cannot be written to.
        ExportError: the format cannot hold this classifier, a package is missing, or the file
            answers otherwise; nothing is left behind then.
    """
    path = check_target(path, format)
    if isinstance(classifier, str | PathLike):
        classifier = Ensemble.from_file(Path(classifier))
    ensemble = exportable_copy(classifier)
    with written_beside(path, format) as beside:
        reloaded = _write(ensemble, beside, format)
        difference = None if reloaded is None else check_parity(ensemble, reloaded)
    return Exported(
        path=path,
        inputs=dict(zip(input_names(ensemble), ensemble.preprocessings, strict=True)),
        output=output_name(ensemble),
        class_names=ensemble.class_names,
        greatest_difference=difference,
    )


def _write(ensemble: Ensemble, path: Path, format: Format) -> Reloaded | None:
    match format:
        case "onnx":
            return write_onnx(ensemble, path)
        case "torch":
            return write_torch(ensemble, path)
        case "safetensors":
            return write_safetensors(ensemble, path)
        case "timm":
            return write_timm(ensemble, path)
        case _:
            assert_never(format)
