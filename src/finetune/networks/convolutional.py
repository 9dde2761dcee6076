"""The convolutional baselines: one network, three kinds of block."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, get_args

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import NetworkError
from finetune.networks.blocks import (
    BlockKind,
    FiveByFive,
    LayerStyle,
    Padding,
    PoolKind,
    Size,
    block,
    check_choice,
    convolution,
    final_layer,
    hidden_layer,
    pooling,
)

# Channels of the stages, and blocks in each.
CONVOLUTIONAL_SIZES: dict[Size, tuple[tuple[int, ...], int]] = {
    "tiny": ((16, 32, 64), 1),
    "small": ((32, 64, 128, 256), 1),
    "base": ((64, 128, 256, 512), 2),
}
Downsample = Literal["pool", "stride"]
CHOICES: dict[str, tuple[str, ...]] = {
    "size": tuple(CONVOLUTIONAL_SIZES),
    "pool": get_args(PoolKind),
    "downsample": get_args(Downsample),
    "padding": get_args(Padding),
    "five_by_five": get_args(FiveByFive),
}
GLOBAL_POOLS = ("", "avg", "max", "avgmax", "catavgmax")


class ConvolutionalBaseline(nn.Module):
    """One convolution, then stages of blocks with a halving of the image between them.

    Args:
        block_kind: what a stage is made of.
        size: number and width of the stages.
        pool: how windows of 2x2 become one value between stages, where ``downsample="pool"``.
        downsample: halve by pooling, or by a stride of 2 in the next stage's first convolution.
        padding: ``"valid"`` (plain blocks only) shrinks the image by ``kernel_size - 1`` a layer.
        hidden_size: width of a fully connected layer before the final one; 0 leaves it out.
        drop_rate: dropout before the final layer.
        drop_path_rate: chance to leave out a residual branch while training (residual only).
        global_pool: timm's name of the pooling at the end, ``"avg"``, ``"max"``, ``"avgmax"``,
            ``"catavgmax"``; ``""`` for none, with 0 classes.

    Raises:
        NetworkError: an option out of its range or choices, or two that do not go together.
    """

    def __init__(
        self,
        block_kind: BlockKind,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        size: Size = "small",
        batch_norm: bool = True,
        pool: PoolKind = "max",
        downsample: Downsample = "pool",
        padding: Padding = "same",
        kernel_size: int = 3,
        five_by_five: FiveByFive = "two_3x3",
        hidden_size: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        given = {"size": size, "pool": pool, "downsample": downsample}
        for option, value in {**given, "padding": padding, "five_by_five": five_by_five}.items():
            check_choice(option, value, CHOICES[option])
        _check_options(block_kind, padding, kernel_size, hidden_size, drop_path_rate)
        style = LayerStyle(kernel_size, padding, batch_norm, drop_path_rate, five_by_five)
        widths, depth = CONVOLUTIONAL_SIZES[size]
        halving = pool if downsample == "pool" else None
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.stem = convolution(in_chans, widths[0], kernel_size, style=style)
        # The stem is the first plain block; blocks of another kind come after it.
        first = _stage(
            block_kind, widths[0], widths[0], depth - (block_kind == "plain"), None, 1, style
        )
        later = [
            _stage(block_kind, before, width, depth, halving, 1 if halving else 2, style)
            for before, width in pairwise(widths)
        ]
        self.stages = nn.Sequential(first, *later)
        if pool == "sum" and halving and not batch_norm:
            _divide_by_window(later, widths)
        self.num_features = widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(widths)
        ]
        self.hidden: nn.Module = nn.Identity()
        pooled = self._pool_by(global_pool)
        if hidden_size:
            self.hidden = hidden_layer(pooled, hidden_size)
        self.head_hidden_size = hidden_size or pooled
        self.fc = final_layer(self.head_hidden_size, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters' names by depth, for layer decay and freezing."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^hidden", (99999,))]}

    def get_classifier(self) -> nn.Module:
        """The final layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh final layer in place; 0 classes leave none, ``global_pool=""`` no pooling.

        Raises:
            NetworkError: classes without pooling, or pooling to a width that the fully connected
                layer before the final one does not take.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            pooled = self._pool_by(global_pool)
            if isinstance(self.hidden, nn.Identity):
                self.head_hidden_size = pooled
        self.fc = final_layer(self.head_hidden_size, num_classes).to(next(self.parameters()).device)

    def _pool_by(self, kind: str) -> int:
        """Put the pooling at the end in place; values that it gives, of which some double them."""
        check_choice("global_pool", kind, GLOBAL_POOLS)
        if not kind and self.num_classes:
            raise NetworkError(
                f"Expected a global_pool before a final layer of {self.num_classes} classes, found "
                'none; take "avg", or 0 classes.'
            )
        pool = SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind))
        pooled: int = self.num_features * pool.feat_mult()
        if isinstance(self.hidden, nn.Sequential) and pooled != self.hidden[0].in_features:
            raise NetworkError(
                f"Expected pooling to {self.hidden[0].in_features} values, as the hidden layer "
                f"takes, found {kind!r}, which gives {pooled}; build the network with it."
            )
        self.global_pool = pool
        return pooled

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to ``(B, num_features, H', W')``."""
        return self.stages(self.stem(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, H', W')`` to logits, or to the final layer's input."""
        pooled = self.global_pool(features)
        if self.global_pool.is_identity():
            return pooled
        hidden = functional.dropout(self.hidden(pooled), self.drop_rate, self.training)
        return hidden if pre_logits else self.fc(hidden)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(images))


def _check_options(
    kind: BlockKind, padding: Padding, kernel_size: int, hidden_size: int, drop_path_rate: float
) -> None:
    if hidden_size < 0:
        raise NetworkError(f"Expected a hidden_size of at least 0, found {hidden_size}; 0: none.")
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise NetworkError(f"Expected an odd kernel_size, found {kernel_size}; take 3, 5 or 7.")
    if padding != "same" and kind != "plain":
        raise NetworkError(
            f'Expected padding "same" with {kind} blocks, whose branches must agree in size, '
            f"found {padding!r}; only baseline_cnn works without padding."
        )
    if drop_path_rate and kind != "residual":
        raise NetworkError(
            f"Expected drop_path_rate 0 with {kind} blocks, found {drop_path_rate}; only "
            "baseline_resnet has branches to leave out."
        )


def _stage(
    kind: BlockKind,
    in_chans: int,
    out_chans: int,
    depth: int,
    halving: PoolKind | None,
    stride: int,
    style: LayerStyle,
) -> nn.Sequential:
    """Halve by pooling if asked for, then ``depth`` blocks, the first with the given stride."""
    layers: list[nn.Module] = [pooling(halving)] if halving else []
    for index in range(depth):
        chans = out_chans if index else in_chans
        layers.append(block(kind, chans, out_chans, stride=1 if index else stride, style=style))
    return nn.Sequential(*layers)


def _divide_by_window(stages: list[nn.Sequential], widths: tuple[int, ...]) -> None:
    """Undo, in the initial weights, that a sum over 2x2 windows is four times their average."""
    for stage, in_chans in zip(stages, widths, strict=False):
        for layer in stage[1].modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == in_chans:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                layer.weight.data.div_(4)
