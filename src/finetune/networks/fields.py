"""Receptive fields of a running network, whatever its ``forward`` does.

Every operation on a value is watched; convolutions and poolings widen what the value sees of the
image, sums and concatenations join it, attention and pooling over all places see the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from finetune.networks.geometry import Field, Window, adaptive_kernel, joined

# Height and width.
Fields = tuple[Field, Field]
# Each output of these reads every place of its input.
GLOBAL = {
    functional.scaled_dot_product_attention,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
}

CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation")
POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding")
MAX_POOL_ARGUMENTS = (*POOL_ARGUMENTS, "dilation")  # where average pooling has ceil_mode


class FieldWatch(TorchFunctionMode):
    """Carries every tensor's receptive field along with it, outside of it."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._known = WeakTensorKeyDictionary()
        self._known[image] = (Field(), Field())

    def fields_of(self, value: Tensor) -> Fields | None:
        """What one place of the value sees; None for the whole image."""
        return self._known[value] if value in self._known else None  # noqa: SIM401

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [value for value in _tensors((args, kwargs)) if value in self._known]
        if inputs:
            for value in _tensors(result):
                self._known[value] = self._seen_by(func, inputs, value, args, kwargs)
        return result

    def _seen_by(
        self,
        func: Callable[..., Any],
        inputs: list[Tensor],
        result: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Fields | None:
        places = _places(result)
        # A gate of one value a channel, beside a value that has places.
        local = [value for value in inputs if _places(value) > 1 or places == 1] or inputs
        fields = [self._known[value] for value in local]
        known = [field for field in fields if field is not None]
        if func in GLOBAL or len(known) < len(fields) or _forgets_places(inputs[0], result):
            return None
        before = (joined(f[0] for f in known), joined(f[1] for f in known))
        windows = _windows(func, inputs[0], result, args, kwargs)
        if windows is not None:
            return (before[0].through(windows[0]), before[1].through(windows[1]))
        if func is functional.pad:
            left, _, top, _ = (*(args[1] if len(args) > 1 else kwargs["pad"]), 0, 0, 0, 0)[:4]
            return (before[0].shifted(top), before[1].shifted(left))
        return before


def _windows(
    func: Callable[..., Any],
    source: Tensor,
    result: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Window, Window] | None:
    """How an operation slides over height and width; None if it does not slide."""
    if func is functional.conv2d:
        given = {**dict(zip(CONVOLUTION_ARGUMENTS, args, strict=False)), **kwargs}
        kernel = tuple(given["weight"].shape[2:])
        padding = given.get("padding", 0)
        dilation = pair(given.get("dilation", 1))
        if padding == "same":
            padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
        padding = (0, 0) if padding == "valid" else pair(padding)
        stride = pair(given.get("stride", 1))
        return _window_pair(kernel, stride, padding, dilation)
    if func in (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d):
        names = POOL_ARGUMENTS if func is functional.avg_pool2d else MAX_POOL_ARGUMENTS
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        kernel = pair(given["kernel_size"])
        stride = pair(given.get("stride") or kernel)
        dilation = pair(given.get("dilation", 1))
        return _window_pair(kernel, stride, pair(given.get("padding", 0)), dilation)
    if func in (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d):
        sizes = list(zip(source.shape[-2:], result.shape[-2:], strict=True))
        height, width = (
            Window(adaptive_kernel(before, after), max(before // after, 1))
            for before, after in sizes
        )
        return height, width
    return None


def _forgets_places(source: Tensor, result: Tensor) -> bool:
    """Whether many places became one: pooled over the whole image, or flattened."""
    return _places(source) > 1 and _places(result) == 1


def _places(value: Tensor) -> int:
    """Places in the image that a value has numbers for: H x W, or tokens; 1 for vectors."""
    match value.dim():
        case 4:
            return value.shape[-1] * value.shape[-2]
        case 3:
            return value.shape[1]
        case _:
            return 1


def _window_pair(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Window, Window]:
    height, width = (
        Window(*values) for values in zip(kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """Height and width from one number for both, or from two."""
    if isinstance(value, int):
        return (value, value)
    return tuple(value) * 2 if len(value) == 1 else tuple(value)
