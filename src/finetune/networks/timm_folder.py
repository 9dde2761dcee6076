"""Networks in timm's own folders: weights, architecture and preprocessing, for timm alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from torch import Tensor

from finetune.networks.image_network import ImageNetwork
from finetune.spec.preprocessing import Preprocessing


def is_timms(network: ImageNetwork) -> bool:
    """Whether timm alone can build the network; it does not know our baselines."""
    return type(network).__module__.split(".")[0] == "timm"


def write_timm_folder(
    network: ImageNetwork,
    beside: Path,
    *,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    notes: Mapping[str, Any],
) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder ``beside`` the target.

    ``notes`` are added to the latter.
    """
    size = (preprocessing.in_chans, preprocessing.image_size, preprocessing.image_size)
    timm.models.save_for_hf(
        network,
        str(beside),
        model_config={"label_names": list(class_names), **notes},
        data_config={
            "input_size": size,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "crop_pct": preprocessing.crop_fraction,
            "interpolation": preprocessing.interpolation,
        },
        safe_serialization=True,
    )


def read_timm_folder(folder: Path) -> tuple[ImageNetwork, Tensor, Tensor]:
    """The network in ``eval`` mode, mean and std ``(1, C, 1, 1)``, by timm's means alone."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return network, mean, std
