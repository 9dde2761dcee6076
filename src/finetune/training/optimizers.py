"""Parameter groups with real learning rates, an optimizer by name, a schedule by steps.

timm knows which parameter belongs to which layer of a backbone, but writes the layer-wise decay
into ``lr_scale`` entries that torch's schedulers ignore. Here the scaled value is the group's
``lr`` itself, so it survives every torch scheduler, checkpoint and resume.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.models import group_parameters
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.errors import TrainingError, UsageError
from finetune.networks.final_layer import head_parameters
from finetune.networks.image_network import ImageNetwork

# Of a classifier's settings, what the optimizer, its schedule and its rates are made of.
OPTIMIZER_SETTINGS = (
    "optimizer",
    "warmup_fraction",
    "lr",
    "backbone_lr_factor",
    "layer_decay",
    "weight_decay",
)


def parameter_groups(
    network: ImageNetwork,
    *,
    lr: float,
    backbone_lr_factor: float = 1.0,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Every trainable parameter of ``network`` in exactly one group, each group with its own rate.

    Args:
        network: a timm classifier or a baseline; frozen parameters are left out.
        lr: learning rate of the final layer, and of an auxiliary head, > 0.
        backbone_lr_factor: rate of everything below the final layer relative to ``lr``, > 0.
        weight_decay: of matrices and kernels; norms, biases and what the network itself exempts
            (``no_weight_decay()``) get none.
        layer_decay: factor in ``(0, 1]`` from each layer to the one below it (Clark et al. 2020,
            Bao et al. 2022); 1 gives the whole backbone one rate.

    Returns:
        dictionaries with ``name``, ``params``, ``lr`` and ``weight_decay``, final layer first,
        then from the top of the backbone to the stem; ready for any torch optimizer.

    Raises:
        UsageError: a rate or factor out of its range.
        TrainingError: nothing in the network is trainable.
    """
    _check_ranges(lr, backbone_lr_factor, weight_decay, layer_decay)
    head = head_parameters(network)
    exempt = _exempt_from_decay(network)
    depths = _depths_below_top(network) if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        # -1 is the final layer; the backbone's depth counts down from the layer under it.
        depth = -1 if name in head else depths.get(name, 0)
        decayed = parameter.ndim > 1 and name not in exempt
        if (depth, decayed) not in groups:
            scale = 1.0 if depth < 0 else backbone_lr_factor * layer_decay**depth
            groups[depth, decayed] = {
                "name": _group_name(depth, decayed, layered=bool(depths)),
                "params": [],
                "lr": lr * scale,
                "weight_decay": weight_decay if decayed else 0.0,
            }
        groups[depth, decayed]["params"].append(parameter)
    if not groups:
        raise TrainingError(
            "Expected at least one trainable parameter, found none; unfreeze a part of the "
            "network or choose another strategy."
        )
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def scheduled_optimizer(
    network: ImageNetwork,
    settings: Mapping[str, Any],
    *,
    steps: float,
    cycles: int,
    fused: bool = False,
) -> OptimizerLRSchedulerConfig:
    """An optimizer over :func:`parameter_groups`, and its :func:`warmup_cosine` by steps.

    Args:
        network: whose trainable parameters learn.
        settings: a classifier's, :data:`OPTIMIZER_SETTINGS`.
        steps: of the whole phase.
        cycles: in how many the learning rate falls; the first alone warms up.
        fused: one kernel a step, where the optimizer has it.

    Raises:
        TrainingError: the steps have no end.
    """
    if steps == math.inf:
        raise TrainingError(
            "Expected a fit with an end, since the learning rate falls towards it, found none; "
            "give --trainer.max_epochs or --trainer.max_steps."
        )
    rates = {name: settings[name] for name in OPTIMIZER_SETTINGS[2:]}
    groups = parameter_groups(network, **rates)
    optimizer = create_optimizer(groups, settings["optimizer"], fused=fused)
    warmup_steps = int(settings["warmup_fraction"] * steps) // cycles
    schedule = warmup_cosine(optimizer, int(steps), warmup_steps, cycles=cycles)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
    }


def create_optimizer(
    groups: Iterable[dict[str, Any]], name: str = "adamw", *, fused: bool = False
) -> Optimizer:
    """The optimizer that timm calls ``name`` (adamw, sgd, lamb, ...) over ready-made ``groups``.

    With ``fused``, one kernel a step where the optimizer has it: for GPUs, which many small ones
    keep waiting. The groups' own ``lr`` and ``weight_decay`` hold; ``sgd`` is Nesterov momentum
    0.9.

    Raises:
        UsageError: timm has no such optimizer, with the nearest names; or it cannot be used here.
    """
    groups = list(groups)
    name = name.lower()
    _check_optimizer_name(name)
    top_rate = max(group["lr"] for group in groups)
    try:
        own = signature(get_optimizer_class(name, bind_defaults=False)).parameters
        options = {"fused": True} if fused and "fused" in own else {}
        optimizer: Optimizer = create_optimizer_v2(groups, opt=name, lr=top_rate, **options)
    except (AssertionError, ImportError) as error:  # apex, bitsandbytes: what timm asks for
        raise UsageError(
            f"Expected an optimizer that can be used here, found {name!r} ({error}); try adamw."
        ) from error
    return optimizer


def check_optimizer(name: str) -> None:
    """Refuse, before anything is trained, what :func:`create_optimizer` would refuse."""
    create_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}], name)


def _check_optimizer_name(name: str) -> None:
    known = list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["adamw", "sgd"]
        raise UsageError(f"Expected an optimizer of timm, found {name!r}; try {', '.join(near)}.")
    if get_optimizer_info(name).second_order:
        raise UsageError(
            f"Expected an optimizer of first derivatives, found {name!r}, which needs second ones "
            "that a fit does not compute; try adamw."
        )


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, *, cycles: int = 1
) -> LambdaLR:
    """A schedule to be stepped after every optimizer step: linear warm-up, then half a cosine to 0.

    One factor multiplies every group's own rate, so the ratios between groups never change. The
    rate reaches its full value at step ``warmup_steps`` and 0 at ``total_steps``, and stays there.
    With several cycles, all of the same length, it falls to 0 in each and starts anew; the warm-up
    is part of the first (Huang et al., Snapshot ensembles, 2017).

    Raises:
        UsageError: fewer than one step a cycle, or a warm-up that is not shorter than the first.
    """
    cycle = total_steps / max(cycles, 1)
    if cycles < 1 or cycle < 1 or not 0 <= warmup_steps < cycle:
        raise UsageError(
            f"Expected total_steps >= cycles >= 1 and 0 <= warmup_steps < total_steps / cycles, "
            f"found {total_steps}, {cycles} and {warmup_steps}; train for more steps, or shorten "
            "the warm-up."
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if step >= total_steps:
            return 0.0
        number = int(step / cycle)
        start = warmup_steps if number == 0 else number * cycle
        progress = (step - start) / ((number + 1) * cycle - start)
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def _check_ranges(
    lr: float, backbone_lr_factor: float, weight_decay: float, layer_decay: float
) -> None:
    if not (lr > 0 and backbone_lr_factor > 0 and weight_decay >= 0 and 0 < layer_decay <= 1):
        raise UsageError(
            "Expected lr > 0, backbone_lr_factor > 0, weight_decay >= 0 and 0 < layer_decay <= 1, "
            f"found {lr}, {backbone_lr_factor}, {weight_decay} and {layer_decay}; to keep the "
            "backbone as it is, freeze it."
        )


def _exempt_from_decay(network: ImageNetwork) -> set[str]:
    return set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()


def _depths_below_top(network: ImageNetwork) -> dict[str, int]:
    """Parameter name -> layers below the final one's (1 for its neighbour), by timm's grouping."""
    layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    top = max(layers.values())
    return {name: top - layer for name, layer in layers.items()}


def _group_name(depth: int, decayed: bool, *, layered: bool) -> str:
    backbone = f"backbone_depth_{depth}" if layered else "backbone"
    part = "final_layer" if depth < 0 else backbone
    return part if decayed else f"{part}_no_decay"
