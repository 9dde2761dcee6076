"""What filters detect: their weights, their activations, and the patches that excite them most.

Following Zeiler and Fergus 2014 ("Visualizing and understanding convolutional networks",
arXiv:1311.2901), figure 2 without the deconvolution: what a channel looks for is shown by the
places of real images where it answers strongest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.errors import NetworkError
from finetune.reporting.style import THEMES, ThemeName, new_axes

# A filter without a hundredth of the strongest one's weight does nothing.
DEAD_BELOW = 0.01
# Neighbouring weights of drawn noise correlate by 0 +- 0.1 to 0.2; those of edges by 0.3 and more.
NOISY_BELOW = 0.2


class SeesPixels(Protocol):
    """A receptive field along one axis, as ``networks.geometry.Field``."""

    def pixels(self, output: int, image_size: int) -> tuple[int, int]:
        """First and one past the last pixel that an output sees."""
        ...


@dataclass(frozen=True, slots=True)
class FilterQuality:
    """Which filters of a layer have learned something.

    Attributes:
        strength: root mean square of each filter's weights, relative to the strongest, ``(N,)``.
        smoothness: correlation of neighbouring weights, in ``[-1, 1]``, ``(N,)``; 0 for noise,
            near 1 for blobs and broad edges. None for kernels of one pixel.
    """

    strength: NDArray[np.float64]
    smoothness: NDArray[np.float64] | None

    @property
    def dead(self) -> NDArray[np.bool_]:
        """Filters without weight."""
        return self.strength < DEAD_BELOW

    @property
    def noisy(self) -> NDArray[np.bool_]:
        """Living filters whose weights look drawn at random."""
        if self.smoothness is None:
            return np.zeros_like(self.dead)
        return ~self.dead & (self.smoothness < NOISY_BELOW)


def first_filters(network: nn.Module) -> NDArray[np.float64]:
    """Weights ``(N, C, h, w)`` of the first convolution.

    Raises:
        NetworkError: a network without convolutions.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().double().cpu().numpy().copy()
    raise NetworkError(
        f"Expected a network with convolutions, found {type(network).__name__} without any; "
        "its first layer has no filters to draw."
    )


def filter_quality(filters: NDArray[np.float64]) -> FilterQuality:
    """How strong and how smooth filters ``(N, C, h, w)`` are."""
    strength = np.sqrt((filters**2).mean(axis=(1, 2, 3)))
    strongest = strength.max(initial=0.0)
    relative = strength / strongest if strongest else strength
    if filters.shape[2] * filters.shape[3] == 1:
        return FilterQuality(relative, None)
    products, norms = np.zeros(len(filters)), np.zeros(len(filters))
    for axis in (2, 3):
        first = np.delete(filters, -1, axis=axis)
        second = np.delete(filters, 0, axis=axis)
        products += (first * second).sum(axis=(1, 2, 3))
        norms += (first**2 + second**2).sum(axis=(1, 2, 3)) / 2
    smoothness = products / np.where(norms > 0, norms, 1.0)
    return FilterQuality(relative, smoothness)


def filters_figure(
    filters: Mapping[str, NDArray[np.float64]], *, limit: int = 64, theme: ThemeName = "light"
) -> Figure:
    """One grid of filters a name, such as before and after training, with the share at rest.

    Filters of three channels are drawn in colour, others as the mean over their channels. Grey is
    zero; each filter has its own scale, so that weak ones can be seen too.
    """
    figure, axes = new_axes(theme, 3.4 * len(filters), 3.9, columns=len(filters))
    for ax, (name, weights) in zip(axes, filters.items(), strict=True):
        quality = filter_quality(weights)
        dead, noisy = 100 * quality.dead.mean(), 100 * quality.noisy.mean()
        shown = f" ({limit} shown)" if len(weights) > limit else ""
        ax.set_title(
            f"{name}\n{len(weights)} filters{shown}: {dead:.0f} % dead, {noisy:.0f} % noisy",
            fontsize=9,
            color=THEMES[theme].text,
        )
        _show(ax, _grid([_as_image(weight) for weight in weights[:limit]]))
    return figure


def layer_activations(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What one layer answers: images ``(B, C, S, S)`` to activations ``(B, channels, H, W)``.

    Args:
        network: called in eval mode without gradients, and left in the mode it was in.
        layer: the module's path in the network.

    Raises:
        NetworkError: the layer's output is no map of places, or it did not run.
    """
    found: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *call: found.append(call[2]))
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            network(images)
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training
    if not found or found[-1].dim() != 4:
        shape = tuple(found[-1].shape) if found else "nothing"
        raise NetworkError(
            f"Expected activations (B, channels, H, W) from {layer}, found {shape}; "
            "choose a convolutional layer."
        )
    return found[-1]


def activations_figure(
    image: Tensor, activations: Tensor, *, limit: int = 24, theme: ThemeName = "light"
) -> Figure:
    """An image ``(C, S, S)`` in ``[0, 1]`` beside the channels ``(N, H, W)`` that answer most."""
    strongest = activations.mean(dim=(1, 2)).argsort(descending=True)[:limit].tolist()
    columns = math.ceil(math.sqrt(limit * 2))
    rows = math.ceil(len(strongest) / columns)
    figure, (left, right) = new_axes(
        theme, 9, 1.2 * rows + 0.6, columns=2, width_ratios=[rows, columns]
    )
    _show(left, image.detach().cpu().permute(1, 2, 0).clamp(0, 1).numpy())
    left.set_title("image", fontsize=9)
    maps = activations[strongest].detach().cpu().double().numpy()
    tops = maps.max(axis=(1, 2), keepdims=True)
    images = [
        np.repeat(values[..., None], 3, axis=2)
        for values in np.clip(maps / np.where(tops > 0, tops, 1.0), 0, 1)
    ]
    _show(right, _grid(images, columns=columns))
    right.set_title(f"{len(strongest)} of {len(activations)} channels, strongest first", fontsize=9)
    return figure


@dataclass(frozen=True, slots=True)
class Patch:
    """A place of an image that excites a channel.

    Attributes:
        image_index: position of the image in the batches, counted through.
        activation: the channel's answer there.
        box: ``(top, bottom, left, right)`` in pixels of the transformed image.
        pixels: the image within the box, ``(C, bottom - top, right - left)``, in ``[0, 1]``.
    """

    image_index: int
    activation: float
    box: tuple[int, int, int, int]
    pixels: Tensor


def top_patches(
    network: nn.Module,
    layer: str,
    batches: Iterable[Tensor],
    *,
    fields: tuple[SeesPixels, SeesPixels],
    channels: Sequence[int],
    count: int = 9,
) -> dict[int, list[Patch]]:
    """For each channel the patches of most activation, one an image, strongest first.

    Args:
        network: takes the batches as they come; a classifier normalises by itself.
        layer: path of a layer with activations ``(B, channels, H, W)``.
        batches: images ``(B, C, S, S)`` in ``[0, 1]``; gone through once.
        fields: what the layer's outputs see, for height and width (``networks.layers.field_of``).
        channels: of the layer.
        count: patches a channel.
    """
    best: dict[int, list[Patch]] = {channel: [] for channel in channels}
    seen = 0
    for images in batches:
        activations = layer_activations(network, layer, images)
        width = activations.shape[-1]
        for channel in channels:
            values, places = activations[:, channel].flatten(1).max(dim=1)
            threshold = best[channel][-1].activation if len(best[channel]) >= count else -math.inf
            for index in (values > threshold).nonzero().flatten().tolist():
                row, column = divmod(int(places[index]), width)
                patch = _cut(images[index], fields, row, column)
                box, pixels = patch
                best[channel].append(Patch(seen + index, float(values[index]), box, pixels))
            best[channel] = sorted(best[channel], key=lambda p: -p.activation)[:count]
        seen += len(images)
    return best


def patches_figure(patches: Mapping[int, Sequence[Patch]], *, theme: ThemeName = "light") -> Figure:
    """One row of patches a channel, strongest first."""
    count = max(len(row) for row in patches.values())
    figure, axes = new_axes(
        theme, 0.9 * count + 1.2, 0.95 * len(patches), rows=len(patches), columns=count
    )
    for index, (channel, row) in enumerate(patches.items()):
        for column in range(count):
            ax = axes[index * count + column]
            if column < len(row):
                _show(ax, row[column].pixels.permute(1, 2, 0).clamp(0, 1).numpy())
            else:
                ax.set_axis_off()
        label = axes[index * count]
        label.set_ylabel(f"channel {channel}", fontsize=8, rotation=0, ha="right", va="center")
    return figure


def _cut(
    image: Tensor, fields: tuple[SeesPixels, SeesPixels], row: int, column: int
) -> tuple[tuple[int, int, int, int], Tensor]:
    top, bottom = fields[0].pixels(row, image.shape[-2])
    left, right = fields[1].pixels(column, image.shape[-1])
    pixels = image[:, top:bottom, left:right].detach().cpu().clone()
    return (top, bottom, left, right), pixels


def _as_image(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A filter ``(C, h, w)`` as ``(h, w, 3)`` in ``[0, 1]``, 0.5 for zero."""
    colours = weight if len(weight) == 3 else weight.mean(axis=0, keepdims=True).repeat(3, axis=0)
    largest = np.abs(colours).max()
    return 0.5 + 0.5 * (colours / largest if largest else colours).transpose(1, 2, 0)


def _grid(
    images: Sequence[NDArray[np.float64]], *, columns: int | None = None
) -> NDArray[np.float64]:
    """Images of one size, side by side with a white line between them."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, _ = images[0].shape
    # Small filters are repeated, so that the line between them stays thin.
    factor = max(1, 24 // max(height, width))
    height, width = height * factor, width * factor
    canvas = np.ones((rows * (height + 2) - 2, columns * (width + 2) - 2, 3))
    for index, image in enumerate(images):
        top, left = index // columns * (height + 2), index % columns * (width + 2)
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        canvas[top : top + height, left : left + width] = enlarged
    return canvas


def _show(ax: Axes, image: NDArray[np.float64]) -> None:
    if image.shape[-1] == 1:
        image = image.repeat(3, axis=2)
    ax.imshow(image, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
