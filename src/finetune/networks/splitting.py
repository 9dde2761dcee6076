"""Cut a network in two at a boundary between stages, without touching it.

At ``"head"`` every timm classifier can be cut. Deeper cuts need to know the order in which a
family runs its modules: ResNet, EfficientNet, MobileNetV3, ConvNeXt, vision transformer,
Inception v3 and the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import NamedTuple

import torch
from timm.models import (
    ConvNeXt,
    EfficientNet,
    InceptionV3,
    MobileNetV3,
    ResNet,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import NetworkError
from finetune.networks.convolutional import ConvolutionalBaseline
from finetune.networks.fully_connected import FullyConnectedBaseline
from finetune.networks.image_network import ImageNetwork

Step = tuple[str, Callable[[Tensor], Tensor]]

# What forward_features runs, in order; "x.*" stands for the children of x, one by one.
STEPS: dict[type[nn.Module], tuple[str, ...]] = {
    ResNet: ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    EfficientNet: ("conv_stem", "bn1", "blocks.*", "conv_head", "bn2"),
    MobileNetV3: ("conv_stem", "bn1", "blocks.*"),
    ConvNeXt: ("stem", "stages.*", "norm_pre"),
    VisionTransformer: ("patch_embed", "blocks.*", "norm"),
    InceptionV3: (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Pool1"),
        *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "Pool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
        *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    ),
    ConvolutionalBaseline: ("stem", "stages.*"),
    FullyConnectedBaseline: ("grid", "stem", "stages.*"),
}


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
        _refuse_auxiliary(network)
        return _split_at_head(network)
    steps = _forward_steps(network)
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

    def bottom(images: Tensor) -> Tensor:
        with evaluating(network):
            return _run(steps[:cut], images)

    def top(activations: Tensor) -> Tensor:
        return network.forward_head(_run(steps[cut:], activations))

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
    drop_rate = _final_dropout(network)

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


def _refuse_layers_between(network: nn.Module, classifier: nn.Module) -> None:
    """Refuse a norm that belongs to neither half: behind the features, before the final layer.

    EfficientViT (MSRA) and SHViT call the linear layer inside of a larger one their classifier.
    """
    for owner in network.modules():
        children = list(owner.children())
        if owner is network or not any(child is classifier for child in children):
            continue
        others = any(list(child.parameters()) for child in children if child is not classifier)
        if others and "pre_logits" not in signature(owner.forward).parameters:
            raise NetworkError(
                f"Expected the final layer of {type(network).__name__} to take its features, found "
                f"layers between in {type(owner).__name__}; train it live."
            )


def _forward_steps(network: ImageNetwork) -> list[Step]:
    """The modules of ``forward_features``, by name, in the order in which they run."""
    _refuse_auxiliary(network)
    patterns = STEPS.get(type(network))
    if patterns is None:
        known = ", ".join(family.__name__ for family in STEPS)
        raise NetworkError(
            f"Expected a network of a family that can be cut inside ({known}), found "
            f'{type(network).__name__}; cut at "head", or train it live.'
        )
    steps: list[Step] = []
    for pattern in patterns:
        name, _, children = pattern.partition(".")
        module = network.get_submodule(name)
        if children:
            steps.extend((f"{name}.{child}", part) for child, part in module.named_children())
        else:
            steps.append((name, module))
    if isinstance(network, VisionTransformer):
        steps[0] = ("patch_embed", lambda images: _embed(network, images))
    return steps


def _embed(network: VisionTransformer, images: Tensor) -> Tensor:
    """Images to the tokens that a vision transformer's first block takes."""
    tokens = network._pos_embed(network.patch_embed(images))
    return network.norm_pre(network.patch_drop(tokens))


def _run(steps: Sequence[Step], value: Tensor) -> Tensor:
    for _, module in steps:
        value = module(value)
    return value


def _final_dropout(network: ImageNetwork) -> float:
    """Dropout rate before the final layer, wherever the family keeps it."""
    rate = getattr(network, "drop_rate", None)
    if isinstance(rate, float | int):
        return float(rate)
    for module in (getattr(network, "head_drop", None), getattr(network, "head", None)):
        dropout = getattr(module, "drop", module)
        if isinstance(dropout, nn.Dropout):
            return dropout.p
    return 0.0


def _refuse_auxiliary(network: ImageNetwork) -> None:
    if getattr(network, "aux_logits", False):
        raise NetworkError(
            "Expected a network with one answer, found Inception with auxiliary logits; "
            "switch aux_logits off, or train it live."
        )
