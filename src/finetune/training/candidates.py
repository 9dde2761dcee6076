"""The best checkpoint of each phase: its confidence put right, then compared with the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from finetune.training.checkpoints import ENTRY, read_checkpoint, write_checkpoint
from finetune.training.metrics import figures_of
from finetune.training.rescaling import best_temperature

HIGHER_IS_BETTER = {"accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy"}


def higher_is_better(monitor: str) -> bool:
    """Whether a figure such as ``val/accuracy`` is meant to rise."""
    return monitor.split("/")[-1] in HIGHER_IS_BETTER


def score(path: Path, monitor: str) -> tuple[float, float]:
    """How good a checkpoint's held-out answers are; higher is better, ties are told by NLL.

    Where nothing was held out, the later file is the better one.
    """
    val = read_checkpoint(path).details.get("val")
    if val is None or not len(val["labels"]):
        return path.stat().st_mtime, 0.0
    figures = figures_of(val["logits"], val["labels"])
    figure = figures.get(monitor.split("/")[-1], figures["nll"])
    return (figure if higher_is_better(monitor) else -figure), -figures["nll"]


def rescale(path: Path, head: Iterable[str]) -> None:
    """Undo what label smoothing does to the confidence: one factor on the final layer.

    Args:
        path: a checkpoint, rewritten in place with weights and held-out answers that agree.
        head: names of the final layer's parameters in the network.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    val = content[ENTRY].get("val")
    if val is None or not len(val["labels"]):
        return
    temperature = best_temperature(val["logits"], val["labels"])
    state = content["state_dict"]
    for name in head:
        state[f"network.{name}"] = state[f"network.{name}"] / temperature
    val["logits"] = val["logits"] / temperature
    write_checkpoint(
        path,
        state_dict=state,
        hyper_parameters=content["hyper_parameters"],
        entry=content[ENTRY],
    )
