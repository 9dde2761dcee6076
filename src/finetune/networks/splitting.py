"""Cut a network in two at a boundary between stages, without touching it.

At ``"head"`` every timm classifier can be cut. Deeper cuts need to know the order in which it runs
its modules, see :mod:`finetune.networks.steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import NetworkError
from finetune.networks.image_network import ImageNetwork
from finetune.networks.module_chain import feeds_final_layer
from finetune.networks.staged import Staged
from finetune.networks.steps import Step, final_dropout, forward_steps, refuse_auxiliary, run_steps


class Split(NamedTuple):
    """The two halves of a network; both share its modules, so training moves them too.

    Attributes:
        bottom: normalised images ``(B, C, H, W)`` to activations ``(B, ...)``; always in eval
            mode and without gradients, whatever the network's mode, which is left as it was.
        top: activations to logits ``(B, classes)``, in the network's own mode, with gradients.
    """

    bottom: Callable[[Tensor], Tensor]
    top: Callable[[Tensor], Tensor]


def split_at_parameters(
    network: ImageNetwork, boundary: str, first_parameters: Sequence[str]
) -> Split:
    """Cut below the first module that owns one of ``first_parameters``; see ``split_at``."""
    if boundary == "head":
        refuse_auxiliary(network)
        return _split_at_head(network)
    steps = forward_steps(network)
    owners = [
        index
        for index, (name, _) in enumerate(steps)
        if any(parameter.startswith(f"{name}.") for parameter in first_parameters)
    ]
    if not owners or min(owners) == 0:
        raise NetworkError(
            f"Expected a boundary with stages below it, found {boundary!r}; "
            "give a later stage, or train the whole network live."
        )
    cut = min(owners)

    if isinstance(network, Staged):
        return _split_staged(network, steps[:cut], steps[cut:])

    def bottom(images: Tensor) -> Tensor:
        with evaluating(network):
            return run_steps(steps[:cut], images)[0]

    def top(activations: Tensor) -> Tensor:
        return network.forward_head(run_steps(steps[cut:], activations)[0])

    return Split(bottom, top)


def _split_staged(network: Staged, below: Sequence[Step], above: Sequence[Step]) -> Split:
    """As others are cut; what the final layer reads below the cut lies behind the activations.

    There, along their first dimension, so that what is cached of an image stays one tensor.
    """

    def bottom(images: Tensor) -> Tensor:
        with evaluating(network):
            activations, pooled = network.run(below, images)
            rest = activations.shape[2:]
            rows = math.ceil(network.read_width / math.prod(rest))
            padded = functional.pad(pooled, (0, rows * math.prod(rest) - pooled.shape[1]))
            return torch.cat([activations, padded.view(-1, rows, *rest)], dim=1)

    def top(activations: Tensor) -> Tensor:
        rows = math.ceil(network.read_width / math.prod(activations.shape[2:]))
        read = activations[:, -rows:].flatten(1)
        value, pooled = network.run(above, activations[:, :-rows])
        return network.answer(
            value, torch.cat([read[:, : network.read_width - pooled.shape[1]], pooled], dim=1)
        )

    return Split(bottom, top)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients within; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _split_at_head(network: ImageNetwork) -> Split:
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Identity | nn.ModuleList):
        raise NetworkError(
            f"Expected one final layer in {type(network).__name__}, found {classifier!r}; "
            "use another backbone, or train it live."
        )
    _refuse_layers_between(network, classifier)
    drop_rate = final_dropout(network)

    def bottom(images: Tensor) -> Tensor:
        with evaluating(network):
            return network.forward_head(network.forward_features(images), pre_logits=True)

    def top(features: Tensor) -> Tensor:
        # Asked for at each call: reset_classifier puts another layer in place.
        dropped = functional.dropout(features, drop_rate, network.training)
        layer = network.get_classifier()
        if isinstance(layer, nn.Conv2d):  # of 1x1 pixel, as some families have it
            return layer(dropped.flatten(1)[:, :, None, None]).flatten(1)
        return layer(dropped)

    return Split(bottom, top)


def _refuse_layers_between(network: ImageNetwork, classifier: nn.Module) -> None:
    """Refuse a norm that belongs to neither half: behind the features, before the final layer.

    EfficientViT (MSRA) and SHViT call the linear layer inside of a larger one their classifier.
    """
    for owner in network.modules():
        children = list(owner.children())
        if owner is network or not any(child is classifier for child in children):
            continue
        others = any(list(child.parameters()) for child in children if child is not classifier)
        asked = "pre_logits" in signature(owner.forward).parameters
        if others and not asked and not feeds_final_layer(network):
            raise NetworkError(
                f"Expected the final layer of {type(network).__name__} to take its features, found "
                f"layers between in {type(owner).__name__}; train it live."
            )
