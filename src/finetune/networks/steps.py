"""What a network runs below its head, step by step: its modules, where these are a chain.

In vision transformers and in Eva (DINOv3 too) they are not: positions are added to the patches, and
the blocks of Eva take them as well. Their order is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from finetune.errors import NetworkError
from finetune.networks.image_network import ImageNetwork
from finetune.networks.module_chain import module_chain

Step = tuple[str, Callable[[Tensor], Tensor]]


def forward_steps(network: ImageNetwork) -> list[Step]:
    """What ``forward_features`` runs, in order, by the names of the modules.

    Raises:
        NetworkError: it cannot be cut in steps.
    """
    refuse_auxiliary(network)
    family = getattr(network, "family", type(network))
    if family is VisionTransformer:
        assert isinstance(network, VisionTransformer)
        return _vision_transformer_steps(network)
    if family is Eva and not _draws_positions(network):
        assert isinstance(network, Eva)
        return _eva_steps(network)
    chain = module_chain(network)
    if not chain:
        raise NetworkError(
            f"Expected a network whose modules run one after the other, each on what the one "
            f"before gave, found {family.__name__}, in whose order other things happen; cut at "
            '"head", or train it live.'
        )
    return [(name, network.get_submodule(name)) for name in chain]


def stage_widths(network: ImageNetwork) -> dict[str, int]:
    """Channels by the name of a stage, as timm tells them: of steps whose output has them there.

    Raises:
        NetworkError: it cannot be cut in steps.
    """
    told = {each["module"]: each["num_chs"] for each in getattr(network, "feature_info", ())}
    steps = [name for name, _ in forward_steps(network) if name in told]
    if isinstance(network, VisionTransformer | Eva):
        return {name: told[name] for name in steps}
    shapes = module_chain(network)
    found = {name: shapes[name][_channel_axis(network, len(shapes[name]))] for name in steps}
    return {name: width for name, width in found.items() if width == told[name]}


def _channel_axis(network: ImageNetwork, axes: int) -> int:
    """Where channels are: first in maps but Swin's and its kin's, last in tokens and vectors."""
    first = axes == 4 and getattr(network, "output_fmt", "NCHW") == "NCHW"
    return 1 if first else axes - 1


def run_steps(
    steps: Sequence[Step],
    value: Tensor,
    pool: Callable[[Tensor], Tensor] | None = None,
    read: Collection[str] = (),
) -> tuple[Tensor, list[Tensor]]:
    """What comes out of the last step, and the pooled outputs ``(B, D_i)`` of those to read.

    Args:
        steps: in order.
        value: what enters the first.
        pool: what is read of an output.
        read: names of steps.
    """
    pooled = []
    for name, module in steps:
        value = module(value)
        if pool is not None and name in read:
            pooled.append(pool(value))
    return value, pooled


def mean_of_places(network: ImageNetwork, value: Tensor) -> Tensor:
    """``(B, D)`` of a step's output: the mean over pixels, or over the tokens of patches."""
    if value.ndim == 4:
        return value.mean(dim=(2, 3) if _channel_axis(network, 4) == 1 else (1, 2))
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    return value[:, prefix:].mean(dim=1) if value.ndim == 3 else value


def _vision_transformer_steps(network: VisionTransformer) -> list[Step]:
    def embed(images: Tensor) -> Tensor:
        tokens = network._pos_embed(network.patch_embed(images))
        return network.norm_pre(network.patch_drop(tokens))

    blocks = [(f"blocks.{name}", block) for name, block in network.blocks.named_children()]
    return [("patch_embed", embed), *blocks, ("norm", network.norm)]


def _eva_steps(network: Eva) -> list[Step]:
    def embed(images: Tensor) -> Tensor:
        return network.norm_pre(network._pos_embed(network.patch_embed(images))[0])

    def in_place(block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda tokens: block(tokens, rope=_positions(network, tokens))

    blocks = [
        (f"blocks.{name}", in_place(block)) for name, block in network.blocks.named_children()
    ]
    return [("patch_embed", embed), *blocks, ("norm", network.norm)]


def _positions(network: Eva, tokens: Tensor) -> Tensor | None:
    """What Eva's blocks turn their queries and keys by, of a square of patches."""
    if network.rope is None:
        return None
    if not network.dynamic_img_size and hasattr(network.rope, "feat_shape"):
        return network.rope.get_embed()
    side = math.isqrt(tokens.shape[1] - network.num_prefix_tokens)
    return network.rope.get_embed(shape=(side, side))


def _draws_positions(network: Eva) -> bool:
    """Whether the positions of blocks are drawn anew in each step of training, or a block's own."""
    drawn = network.patch_drop is not None or getattr(network.rope, "aug_active", False)
    return drawn or bool(getattr(network, "rope_mixed", False))


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
