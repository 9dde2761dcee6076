"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.errors import ExportError
from finetune.exporting.copying import only_classifier
from finetune.exporting.description import describe_export
from finetune.exporting.parity import Reloaded
from finetune.networks.final_layer import output_tensors
from finetune.networks.image_network import ImageNetwork
from finetune.networks.staged import Staged
from finetune.networks.timm_folder import is_timms, read_timm_folder, write_timm_folder
from finetune.tasks.units import Unit


def write_timm(ensemble: Ensemble, beside: Path) -> Reloaded:
    """Write weights and configuration into a new folder ``beside`` the target, as timm does.

    timm's networks answer with logits; a calibration's temperature is multiplied into the final
    layer, so that these logits say what our answer says. So is the unit of numbers.

    Raises:
        ExportError: several members, a network that timm does not know, or a temperature that has
            no place.
    """
    classifier = only_classifier(ensemble)
    if classifier is None:
        raise ExportError(
            f"Expected one classifier for the format timm, found an ensemble of "
            f"{len(ensemble.parts)}; use the format onnx, torch or safetensors."
        )
    if isinstance(classifier.network, Staged):
        raise ExportError(
            "Expected a final layer as timm has it for the format timm, found one that reads "
            "several stages; use the format onnx, torch or safetensors, or fit with "
            "--model.stages none."
        )
    if not is_timms(classifier.network):
        raise ExportError(
            f"Expected a backbone of timm for the format timm, found {classifier.backbone}, which "
            "only finetune knows; use the format onnx, torch or safetensors."
        )
    network = deepcopy(classifier.network)
    if ensemble.calibration is not None and ensemble.calibration.fit is not None:
        if ensemble.calibration.scaling is not None:
            raise ExportError(
                "Expected one temperature for the format timm, found a factor and a shift for each "
                "label; use the format onnx, torch or safetensors."
            )
        _cool(network, ensemble.calibration.temperature)
    if isinstance(classifier.unit, Unit):
        _give_unit(network, classifier.unit)
    write_timm_folder(
        network,
        beside,
        class_names=classifier.class_names,
        preprocessing=classifier.preprocessing,
        notes={"finetune": describe_export(ensemble)},
    )
    other, mean, std = read_timm_folder(beside)

    def answer(views: tuple[Tensor, ...]) -> Tensor:
        logits = other((views[0] - mean) / std)
        logits = logits[0] if isinstance(logits, tuple) else logits  # Inception's auxiliary head
        return classifier.task.probabilities(logits)

    return answer


def _give_unit(network: ImageNetwork, unit: Unit) -> None:
    """Turn what the final layer says into the user's unit."""
    names = output_tensors(network)
    biased = [name for name in names if network.get_parameter(name).ndim == 1]
    if not biased or 2 * len(biased) != len(names):
        raise ExportError(
            "Expected a linear final layer with a bias that takes the unit, found none in "
            f"{type(network).__name__}; use the format onnx, torch or safetensors."
        )
    with torch.no_grad():
        for name in names:
            tensor = network.get_parameter(name)
            tensor.mul_(unit.spread if name in biased else unit.spread[:, None])
            tensor.add_(unit.mean if name in biased else 0)


def _cool(network: ImageNetwork, temperature: float) -> None:
    """Divide the logits by the temperature."""
    names = output_tensors(network)
    if not names:
        raise ExportError(
            "Expected a linear final layer that takes the temperature, found none in "
            f"{type(network).__name__}; use the format onnx, torch or safetensors."
        )
    with torch.no_grad():
        for name in names:
            network.get_parameter(name).div_(temperature)
