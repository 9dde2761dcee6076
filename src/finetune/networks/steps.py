"""What a network runs, step by step: the order of modules of the families in which it is known.

ResNet, EfficientNet, MobileNetV3, ConvNeXt, vision transformer, Inception v3 and the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from timm.models import (
    ConvNeXt,
    EfficientNet,
    InceptionV3,
    MobileNetV3,
    ResNet,
    VisionTransformer,
)
from torch import Tensor, nn

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


def forward_steps(network: ImageNetwork) -> list[Step]:
    """The modules of ``forward_features``, by name, in the order in which they run."""
    refuse_auxiliary(network)
    patterns = STEPS.get(getattr(network, "family", type(network)))
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


def run_steps(
    steps: Sequence[Step], value: Tensor, read: Collection[str] = (), *, prefix_tokens: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """What comes out of the last step, and the pooled outputs ``(B, D_i)`` of those to read.

    Args:
        steps: in order.
        value: what enters the first.
        read: names of steps.
        prefix_tokens: of a transformer, which no mean over the image's patches counts.
    """
    pooled = []
    for name, module in steps:
        value = module(value)
        if name in read:
            pooled.append(_pooled(value, prefix_tokens))
    return value, pooled


def _pooled(value: Tensor, prefix_tokens: int) -> Tensor:
    if value.ndim == 4:
        return value.mean(dim=(2, 3))
    return value[:, prefix_tokens:].mean(dim=1) if value.ndim == 3 else value


def _embed(network: VisionTransformer, images: Tensor) -> Tensor:
    """Images to the tokens that a vision transformer's first block takes."""
    tokens = network._pos_embed(network.patch_embed(images))
    return network.norm_pre(network.patch_drop(tokens))


def final_dropout(network: ImageNetwork) -> float:
    """Dropout rate before the final layer, wherever the family keeps it."""
    rate = getattr(network, "drop_rate", None)
    if isinstance(rate, float | int):
        return float(rate)
    for module in (getattr(network, "head_drop", None), getattr(network, "head", None)):
        dropout = getattr(module, "drop", module)
        if isinstance(dropout, nn.Dropout):
            return dropout.p
    return 0.0


def refuse_auxiliary(network: ImageNetwork) -> None:
    """Refuse Inception where it has a second answer.

    Raises:
        NetworkError: it has.
    """
    if getattr(network, "aux_logits", False):
        raise NetworkError(
            "Expected a network with one answer, found Inception with auxiliary logits; "
            "switch aux_logits off, or train it live."
        )
