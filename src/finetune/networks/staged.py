"""A final layer that reads more: the pooled outputs of several stages beside the head's features.

Early stages know colours and textures that the last one has forgotten, which helps where images are
of another kind than those of pretraining (Head2Toe: Evci et al. 2022, "Head2Toe: Utilizing
Intermediate Representations for Better Transfer Learning"). The network keeps its modules and their
names; its class gets a sibling whose final layer takes ``[head's features, pooled outputs]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import NetworkError
from finetune.networks.image_network import ImageNetwork
from finetune.networks.steps import (
    Step,
    final_dropout,
    forward_steps,
    mean_of_places,
    run_steps,
    stage_widths,
)

MOST_STAGES = 4


class Staged(ImageNetwork):
    """What differs from the network that it was; ``forward_features`` pools already.

    Attributes:
        family: the class that it had.
        read: the stages whose outputs are read, from the image upwards.
        head_width, read_width: how many features are the head's, how many those stages'.
        read_scales: ``(read_width,)``, by which their outputs are multiplied: fixed, so that they
            vary as the head's features do, and one penalty holds all weights down alike.
    """

    family: type[ImageNetwork]
    read: tuple[str, ...]
    head_width: int
    read_width: int
    read_scales: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of normalised images."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """What the final layer takes, ``(B, head_width + read_width)``."""
        return self.joined(*self.run(forward_steps(self), images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of these features, which stay as they are with ``pre_logits``."""
        if pre_logits:
            return features
        dropped = functional.dropout(features, final_dropout(self), self.training)
        return self.get_classifier()(dropped)

    def run(self, steps: Sequence[Step], value: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out of some steps, and ``(B, D)`` of the stages among them that are read."""
        value, pooled = run_steps(steps, value, partial(mean_of_places, self), self.read)
        # No length: an export would take it for that of every batch.
        none = value.new_empty(value.shape[0], 0)
        return value, torch.cat(pooled, dim=1) if pooled else none

    def joined(self, activations: Tensor, pooled: Tensor) -> Tensor:
        """Features of the last stage's activations and of ``(B, read_width)``."""
        head = super().forward_head(activations, pre_logits=True)
        return torch.cat([head.flatten(1), pooled * self.read_scales], dim=1)

    def answer(self, activations: Tensor, pooled: Tensor) -> Tensor:
        """Logits of the same."""
        return self.forward_head(self.joined(activations, pooled))

    def last_map(self, images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The activations that the head pools, and the logits as a function of them alone."""
        activations, pooled = self.run(forward_steps(self), images)
        return activations, lambda other: self.answer(other, pooled)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new final layer, as wide as before."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes:
            _widen(self)


def readable_stages(network: ImageNetwork) -> tuple[str, ...]:
    """The stages that a final layer of this network could read: four, the last among them.

    None where the order of modules is not known, or the final layer is no linear one.
    """
    if isinstance(network, Staged) or not isinstance(network.get_classifier(), nn.Linear):
        return ()
    try:
        known = list(stage_widths(network))
    except NetworkError:
        return ()
    every = max(1, len(known) // MOST_STAGES)
    return tuple(known[::-1][::every][:MOST_STAGES][::-1])


def read_stages(network: ImageNetwork, stages: Sequence[str], scales: Tensor | None = None) -> None:
    """Let the final layer read these stages as well, in place; its answers stay as they are.

    Args:
        network: with one linear final layer.
        stages: out of those that timm names in its ``feature_info``.
        scales: see :class:`Staged`; 1 for None.

    Raises:
        NetworkError: a stage that this network does not have, or whose output cannot be read.
    """
    if not isinstance(network.get_classifier(), nn.Linear):
        raise NetworkError(
            f"Expected one linear final layer that can read stages, found "
            f"{type(network.get_classifier()).__name__} in {type(network).__name__}; leave "
            "stages out."
        )
    _become_staged(network, stages)
    assert isinstance(network, Staged)
    if scales is not None:
        network.read_scales.copy_(scales)
    _widen(network)


def reader_of(network: ImageNetwork, stages: Sequence[str]) -> Staged:
    """A twin that shares all modules, for features alone: those of stages are as they come."""
    twin = copy(network)
    twin._modules, twin._buffers = dict(network._modules), dict(network._buffers)
    _become_staged(twin, stages)
    assert isinstance(twin, Staged)
    return twin


def _become_staged(network: ImageNetwork, stages: Sequence[str]) -> None:
    known = stage_widths(network)
    named = stages if isinstance(stages, list | tuple) else [stages]  # a file may say anything
    unknown = [stage for stage in named if stage not in known]
    if unknown or not named:
        raise NetworkError(
            f"Expected stages out of {', '.join(known)}, found "
            f"{', '.join(map(repr, unknown)) or 'none'}; name some of these, or leave stages out."
        )
    if not isinstance(network, Staged):
        network.__class__ = _sibling(type(network))  # type: ignore[arg-type]
    assert isinstance(network, Staged)
    network.read = tuple(name for name in known if name in named)
    network.read_width = sum(known[name] for name in network.read)
    like = next(network.parameters())
    network.register_buffer("read_scales", torch.ones(network.read_width).to(like))


@cache
def _sibling(family: type[ImageNetwork]) -> type[Staged]:
    """The class of a family's networks that read stages."""
    return type(f"Staged{family.__name__}", (Staged, family), {"family": family})


def _widen(network: Staged) -> None:
    """Put a final layer in place that takes the stages' features too, with weights of zero."""
    layer = network.get_classifier()
    assert isinstance(layer, nn.Linear)
    network.head_width = layer.in_features
    wide = nn.Linear(layer.in_features + network.read_width, layer.out_features).to(layer.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : layer.in_features] = layer.weight
        wide.bias.copy_(layer.bias if layer.bias is not None else torch.zeros_like(wide.bias))
    name = next(name for name, module in network.named_modules() if module is layer)
    network.set_submodule(name, wide)
