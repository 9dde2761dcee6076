"""The best checkpoint of each phase: its confidence put right, then compared with the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.evaluation.metrics import figures_of
from finetune.training.checkpoints import ENTRY, read_checkpoint, write_checkpoint
from finetune.training.rescaling import best_temperature

HIGHER_IS_BETTER = {"accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy"}


def higher_is_better(monitor: str) -> bool:
    """Whether a figure such as ``val/accuracy`` is meant to rise."""
    return monitor.split("/")[-1] in HIGHER_IS_BETTER


def standing(logits: Tensor, labels: Tensor, monitor: str) -> tuple[float, float]:
    """Where answers stand by a figure, the NLL telling ties: the higher the better."""
    figures = figures_of(logits, labels)
    value = figures.get(monitor.split("/")[-1], figures["nll"])
    return (value if higher_is_better(monitor) else -value, -figures["nll"])


def figure(path: Path, monitor: str) -> float | None:
    """A held-out figure of a checkpoint, from its answers; None where nothing was held out."""
    val = _answers(path)
    if val is None:
        return None
    figures = figures_of(*val)
    return figures.get(monitor.split("/")[-1], figures["nll"])


def clearly_better(path: Path, simpler: Path, monitor: str) -> bool:
    """Whether a later phase's checkpoint is to replace that of the simpler phase before it.

    Where the figure is an NLL, its gain has to exceed its standard error over the held-out
    pictures: with a few dozen of them a smaller one is chance, and the simpler classifier is the
    safer. Other figures are compared as they are, ties told by NLL. Where nothing was held out,
    the later phase is the better one.

    Source: the one-standard-error rule, Breiman et al., Classification and regression trees, 1984.
    """
    after, before = _answers(path), _answers(simpler)
    if after is None or before is None:
        return True
    if higher_is_better(monitor):
        return standing(*after, monitor) > standing(*before, monitor)
    gains = _losses(*before) - _losses(*after)
    if len(gains) < 2:
        return bool(gains.sum() > 0)
    return bool(gains.mean() > gains.std() / len(gains) ** 0.5)


def _answers(path: Path) -> tuple[Tensor, Tensor] | None:
    val = read_checkpoint(path).details.get("val")
    return None if val is None or not len(val["labels"]) else (val["logits"], val["labels"])


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.double(), labels, reduction="none")


def rescale(path: Path, head: Iterable[str]) -> None:
    """Put a checkpoint's confidence right, in place; see :func:`rescaled`."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    val = content[ENTRY].get("val")
    if val is None or not len(val["labels"]):
        return
    state, val["logits"] = rescaled(content["state_dict"], val["logits"], val["labels"], head)
    write_checkpoint(
        path,
        state_dict=state,
        hyper_parameters=content["hyper_parameters"],
        entry=content[ENTRY],
    )


def rescaled(
    state: Mapping[str, Tensor], logits: Tensor, labels: Tensor, head: Iterable[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Undo what label smoothing does to the confidence: one factor on the final layer.

    Args:
        state: a classifier's weights.
        logits, labels: its answers to held-out pictures, ``(N, C)`` and ``(N,)``.
        head: names of the final layer's parameters in the network.

    Returns:
        Weights and answers that agree.
    """
    temperature = best_temperature(logits, labels)
    names = {f"network.{name}" for name in head}
    scaled = {
        name: value / temperature if name in names else value for name, value in state.items()
    }
    return scaled, logits / temperature
