"""Any network as a table of layers: sizes, receptive fields, weights, connections.

The network is run once on an empty image while every operation on its values is watched, so the
table holds for branches, shortcuts and hand-written ``forward`` methods alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finetune.networks.fields import Fields, FieldWatch, pair
from finetune.networks.geometry import Field, LayerCost, convolution_cost, dense_cost
from finetune.networks.splitting import evaluating

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table.

    Attributes:
        name: the module's path in the network.
        kind: what it is, with kernel and stride where it has them.
        output: its output's shape for one image, ``(C, H, W)``, ``(tokens, C)`` or ``(C,)``.
        fields: what one output sees, for height and width; None where it sees the whole image.
        cost: weights and connections of this layer alone.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    fields: Fields | None
    cost: LayerCost

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """Height and width in pixels; None for the whole image."""
        return None if self.fields is None else (self.fields[0].size, self.fields[1].size)

    @property
    def stride(self) -> float | None:
        """Pixels between what neighbouring outputs see; None for the whole image."""
        return None if self.fields is None else self.fields[1].jump


def layer_table(network: nn.Module, image_size: int, *, in_chans: int = 3) -> list[Layer]:
    """The convolutions, poolings and linear layers of a network, in the order they run.

    What a gate of one value a channel knows of the whole image (squeeze-and-excitation) is left
    out of the receptive field: it scales a channel everywhere alike and says nothing of places.

    Args:
        network: any timm classifier or baseline; left as it is.
        image_size: side of the square image.
        in_chans: its channels.
    """
    image = _empty_image(network, image_size, in_chans)
    layers: list[Layer] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        watch = stack.enter_context(FieldWatch(image))
        stack.enter_context(_recording(network, watch, layers))
        network(image)
    return layers


def field_of(network: nn.Module, layer: str, image_size: int, *, in_chans: int = 3) -> Fields:
    """What the outputs of one layer see, for height and width.

    Args:
        layer: path of any module whose output is one tensor, such as ``"layer3"``.

    Returns:
        Two fields; where the layer sees the whole image, fields of its size with jump 0.
    """
    module = network.get_submodule(layer)
    image = _empty_image(network, image_size, in_chans)
    found: list[Fields | None] = []
    with evaluating(network), FieldWatch(image) as watch:
        handle = module.register_forward_hook(lambda *call: found.append(watch.fields_of(call[2])))
        try:
            network(image)
        finally:
            handle.remove()
    whole = Field(0, image_size - 1, 0)
    return (found[0] if found else None) or (whole, whole)


def _empty_image(network: nn.Module, size: int, in_chans: int) -> Tensor:
    return next(network.parameters()).new_zeros(1, in_chans, size, size)


@contextmanager
def _recording(network: nn.Module, watch: FieldWatch, layers: list[Layer]) -> Iterator[None]:
    """Append a row for each layer that runs."""

    def note(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            shape = tuple(output.shape[1:])
            fields = watch.fields_of(output)
            layers.append(Layer(name, _kind(module), shape, fields, _cost(module, output)))

    handles = [
        module.register_forward_hook(
            lambda module, _, output, name=name: note(name, module, output)
        )
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear, *POOLING))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        name = "depthwise" if depthwise else "convolution"
        return f"{name} {_times(module.kernel_size)}{_step(module.stride)}"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        name = "max" if isinstance(module, nn.MaxPool2d) else "average"
        return f"{name} pooling {_times(module.kernel_size)}{_step(module.stride)}"
    if isinstance(module, nn.Linear):
        return "fully connected"
    return "adaptive pooling"


def _times(value: Any) -> str:
    height, width = pair(value)
    return f"{height}x{width}"


def _step(value: Any) -> str:
    height, width = pair(value)
    return "" if height == width == 1 else f" / {height if height == width else _times(value)}"


def _cost(module: nn.Module, output: Tensor) -> LayerCost:
    if isinstance(module, nn.Conv2d):
        height, width = output.shape[-2:]
        kernel = (module.kernel_size[0], module.kernel_size[1])
        return convolution_cost(
            module.in_channels,
            module.out_channels,
            kernel,
            (height, width),
            groups=module.groups,
            bias=module.bias is not None,
        )
    if isinstance(module, nn.Linear):
        times = output[0].numel() // module.out_features
        cost = dense_cost(module.in_features, module.out_features, bias=module.bias is not None)
        return LayerCost(cost.parameters, cost.connections * times)
    return LayerCost(0, 0)
