"""The arithmetic of convolutions: output sizes, what a neuron sees, weights and connections.

Pure functions of whole numbers, along one axis unless said otherwise. The receptive-field algebra
follows Araujo, Norris and Sim 2019 ("Computing receptive fields of convolutional neural
networks", Distill).

The lecture that this toolkit grew out of says that two stacked 3x3 layers see 9x9 pixels and three
see 27x27. That holds where the windows do not overlap, with stride 3; with stride 1 it is 5x5 and
7x7. ``stack_field([Window(3, 3)] * 2).size`` is 9, ``stack_field([Window(3)] * 2).size`` is 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution or a pooling layer slides along one axis.

    Attributes:
        kernel: inputs that one output reads, at least 1.
        stride: step from one output to the next.
        padding: inputs added before the first; the same number after the last.
        dilation: distance between the inputs that are read.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.dilation) < 1 or self.padding < 0:
            raise ValueError(
                "Expected kernel, stride and dilation of at least 1 and padding of at least 0, "
                f"found {self}."
            )

    @property
    def span(self) -> int:
        """Distance from the first to the last input that is read, both counted."""
        return (self.kernel - 1) * self.dilation + 1


def output_size(size: int, window: Window, *, ceil_mode: bool = False) -> int:
    """Outputs of a convolution or pooling layer over ``size`` inputs.

    Without padding this is ``ceil((size - span + 1) / stride)``. ``ceil_mode`` (pooling only) also
    counts a last window that starts within the input or its left padding but ends outside.

    Raises:
        ValueError: the window does not fit even once.
    """
    room = size + 2 * window.padding - window.span
    outputs = (math.ceil(room / window.stride) if ceil_mode else room // window.stride) + 1
    if ceil_mode and (outputs - 1) * window.stride >= size + window.padding:
        outputs -= 1
    if outputs < 1:
        raise ValueError(
            f"Expected an input of at least {window.span - 2 * window.padding}, found {size}; "
            "use a smaller kernel, more padding or a larger image."
        )
    return outputs


def same_size(size: int, stride: int) -> int:
    """Outputs with "same" padding, as TensorFlow and timm's ``Conv2dSame`` pad: ceil(N / k)."""
    return math.ceil(size / stride)


def adaptive_kernel(size: int, outputs: int) -> int:
    """The widest window of adaptive pooling from ``size`` inputs to ``outputs``.

    Output i reads the inputs from ``floor(i * size / outputs)`` to before
    ``ceil((i + 1) * size / outputs)``: where the sizes do not divide, one or two more than
    ``size // outputs``.
    """
    return max(-(-(i + 1) * size // outputs) - i * size // outputs for i in range(outputs))


@dataclass(frozen=True, slots=True)
class Field:
    """What the outputs of a layer see of the image, along one axis, in pixels.

    Attributes:
        low, high: first and last pixel that output 0 sees; negative or beyond the image where it
            sees padding. Pixel 0 is the image's first.
        jump: pixels from what one output sees to what the next one sees (the effective stride).
    """

    low: float = 0.0
    high: float = 0.0
    jump: float = 1.0

    @property
    def size(self) -> int:
        """Pixels that one output sees: the receptive field."""
        return math.ceil(self.high - self.low) + 1

    def centre(self, output: int = 0) -> float:
        """Middle, in pixels, of what one output sees."""
        return (self.low + self.high) / 2 + output * self.jump

    def pixels(self, output: int, image_size: int) -> tuple[int, int]:
        """First and one past the last pixel that an output sees, cut at the image's border."""
        first = math.floor(self.low + output * self.jump)
        return max(first, 0), min(first + self.size, image_size)

    def through(self, window: Window) -> Field:
        """What the outputs of one more layer on top see."""
        reach = (window.span - 1 - window.padding) * self.jump
        return Field(
            self.low - window.padding * self.jump,
            self.high + reach,
            self.jump * window.stride,
        )

    def shifted(self, outputs: int) -> Field:
        """The field after ``outputs`` values were padded in front (cut off, if negative)."""
        return replace(
            self, low=self.low - outputs * self.jump, high=self.high - outputs * self.jump
        )


def stack_field(windows: Iterable[Window]) -> Field:
    """Receptive field of layers on top of each other, the one at the image first."""
    field = Field()
    for window in windows:
        field = field.through(window)
    return field


def joined(fields: Iterable[Field]) -> Field:
    """What is seen where branches meet, by sum or by channel: all that any of them sees."""
    fields = list(fields)
    return Field(
        min(field.low for field in fields),
        max(field.high for field in fields),
        max(field.jump for field in fields),
    )


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one layer holds and does.

    Attributes:
        parameters: weights and biases, each counted once however often it is used.
        connections: pairs of an input and an output with a weight between them.
        multiply_adds: for one image; equal to the connections of the layer's weights.
    """

    parameters: int
    connections: int

    @property
    def multiply_adds(self) -> int:
        """One multiplication and addition for every connection."""
        return self.connections


def dense_cost(inputs: int, outputs: int, *, bias: bool = False) -> LayerCost:
    """Every output is connected with every input by a weight of its own."""
    return LayerCost(inputs * outputs + bias * outputs, inputs * outputs)


def local_cost(outputs: int, inputs_per_output: int) -> LayerCost:
    """Every output sees a few inputs, still with weights of its own: no sharing."""
    return LayerCost(outputs * inputs_per_output, outputs * inputs_per_output)


def convolution_cost(
    in_chans: int,
    out_chans: int,
    kernel: tuple[int, int],
    output: tuple[int, int],
    *,
    groups: int = 1,
    bias: bool = False,
) -> LayerCost:
    """Every output sees a few inputs, with the same weights at each place.

    Args:
        in_chans, out_chans: channels before and after.
        kernel, output: height and width of the kernel and of the layer's output.
        groups: channels are connected within groups only; ``in_chans`` makes it depthwise.
        bias: one more parameter an output channel.

    Connections to padding are counted too, as every implementation multiplies with its zeros.
    """
    weights = out_chans * (in_chans // groups) * kernel[0] * kernel[1]
    return LayerCost(weights + bias * out_chans, weights * output[0] * output[1])
