"""What the baselines are made of: layers, pooling, and three kinds of convolutional block.

Every block keeps the image's size at stride 1 and gives ``ceil(N / 2)`` at stride 2, so that blocks
and pooling can be exchanged for one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from finetune.errors import NetworkError

Size = Literal["tiny", "small", "base"]
BlockKind = Literal["plain", "residual", "inception"]
PoolKind = Literal["max", "average", "sum"]
Padding = Literal["same", "valid"]
FiveByFive = Literal["single", "two_3x3"]


@dataclass(frozen=True, slots=True)
class LayerStyle:
    """What all the convolutions of one network have in common.

    Attributes:
        kernel_size: odd side of the plain and residual blocks' kernels.
        padding: ``"same"`` adds ``kernel_size // 2`` zeros on each side, ``"valid"`` none.
        batch_norm: normalise between convolution and ReLU; otherwise the convolution has a bias.
        drop_path_rate: chance with which a residual branch is left out while training.
        five_by_five: the inception block's wide branch as one 5x5 kernel or as two 3x3.
    """

    kernel_size: int = 3
    padding: Padding = "same"
    batch_norm: bool = True
    drop_path_rate: float = 0.0
    five_by_five: FiveByFive = "two_3x3"


def convolution(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    *,
    stride: int = 1,
    style: LayerStyle,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution, batch norm if the style has it, ReLU: ``(B, in, H, W)`` to ``(B, out, H', W')``.

    Weights are He-initialised (He et al. 2015, arXiv:1502.01852).
    """
    padding = kernel_size // 2 if style.padding == "same" else 0
    layer = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, bias=not style.batch_norm)
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    layers: list[nn.Module] = [layer]
    if style.batch_norm:
        layers.append(nn.BatchNorm2d(out_chans))
    if activation:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def pooling(kind: PoolKind) -> nn.Module:
    """Pooling that keeps a last incomplete window: ``(B, C, H, W)`` to ``ceil(H / 2)`` rows.

    Sum and average pooling are convolutions of each channel with a constant kernel, 1 or 1/4.
    """
    match kind:
        case "max":
            return nn.MaxPool2d(2, ceil_mode=True)
        case "average":
            return nn.AvgPool2d(2, ceil_mode=True)
        case "sum":
            return nn.AvgPool2d(2, ceil_mode=True, divisor_override=1)
        case _:
            assert_never(kind)


def block(
    kind: BlockKind, in_chans: int, out_chans: int, *, stride: int, style: LayerStyle
) -> nn.Module:
    """One block of the given kind: ``(B, in, H, W)`` to ``(B, out, H / stride, W / stride)``."""
    match kind:
        case "plain":
            return convolution(in_chans, out_chans, style.kernel_size, stride=stride, style=style)
        case "residual":
            return ResidualBlock(in_chans, out_chans, stride=stride, style=style)
        case "inception":
            return InceptionBlock(in_chans, out_chans, stride=stride, style=style)
        case _:
            assert_never(kind)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut around them (He et al. 2015, arXiv:1512.03385, figure 2).

    Where size or channels change, the shortcut is a 1x1 convolution. The branch starts at zero, so
    that the untrained block passes its input on (Goyal et al. 2017, arXiv:1706.02677, 5.1).
    """

    def __init__(self, in_chans: int, out_chans: int, *, stride: int, style: LayerStyle) -> None:
        super().__init__()
        k = style.kernel_size
        self.conv1 = convolution(in_chans, out_chans, k, stride=stride, style=style)
        self.conv2 = convolution(out_chans, out_chans, k, style=style, activation=False)
        for parameter in self.conv2[-1].parameters():
            nn.init.zeros_(parameter)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chans != out_chans:
            self.shortcut = convolution(
                in_chans, out_chans, 1, stride=stride, style=style, activation=False
            )
        self.drop_path = DropPath(style.drop_path_rate)
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H / stride, W / stride)``."""
        branch = self.drop_path(self.conv2(self.conv1(images)))
        return self.act(self.shortcut(images) + branch)


class InceptionBlock(nn.Module):
    """Kernels of several sizes side by side, joined by channel.

    Szegedy et al. 2015 (arXiv:1512.00567): figure 4 with the 5x5 as it is, figure 5 with two 3x3
    in its place, which see as much with 18 instead of 25 weights a channel pair (the first of them
    stays narrow, so the branch is smaller still). A quarter of the channels comes from 1x1, half
    from 3x3, an eighth each from 5x5 and from pooling.
    """

    def __init__(self, in_chans: int, out_chans: int, *, stride: int, style: LayerStyle) -> None:
        super().__init__()
        quarter, eighth = out_chans // 4, out_chans // 8
        narrow = max(out_chans // 16, 4)
        self.branch1 = convolution(in_chans, quarter, 1, stride=stride, style=style)
        self.branch3 = nn.Sequential(
            convolution(in_chans, quarter, 1, style=style),
            convolution(quarter, 2 * quarter, 3, stride=stride, style=style),
        )
        wide = (
            [convolution(narrow, eighth, 5, stride=stride, style=style)]
            if style.five_by_five == "single"
            else [
                convolution(narrow, narrow, 3, style=style),
                convolution(narrow, eighth, 3, stride=stride, style=style),
            ]
        )
        self.branch5 = nn.Sequential(convolution(in_chans, narrow, 1, style=style), *wide)
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride, padding=1), convolution(in_chans, eighth, 1, style=style)
        )

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H / stride, W / stride)``."""
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(images) for branch in branches], dim=1)


def hidden_layer(inputs: int, outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Fully connected layer, batch norm if asked for, ReLU: ``(B, inputs)`` to ``(B, outputs)``."""
    layer = nn.Linear(inputs, outputs, bias=not batch_norm)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if batch_norm:
        return nn.Sequential(layer, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True))
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.ReLU(inplace=True))


def final_layer(inputs: int, num_classes: int) -> nn.Module:
    """A linear layer that starts with nearly equal probabilities; none for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    layer = nn.Linear(inputs, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise NetworkError(f"Expected {option} to be one of {list(choices)}, found {value!r}.")
