"""An image and its neighbours, small and side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from finetune.prediction.feature_space import Neighbour
from finetune.reporting.style import THEMES, ThemeName, display_names, font_families, new_axes
from finetune.reporting.thumbnails import read_thumbnail

COLUMNS = 6


def contact_sheet(
    image: str, neighbours: Sequence[Neighbour], *, theme: ThemeName = "light"
) -> Figure:
    """The image first, then its neighbours with folder, file name and distance."""
    shown = [image, *(each.path for each in neighbours)]
    below = ["", *(f"\n{each.distance:.3f}" for each in neighbours)]
    rows = math.ceil(len(shown) / COLUMNS)
    columns = min(len(shown), COLUMNS)
    figure, axes = new_axes(theme, 1.5 * columns, 1.9 * rows, rows=rows, columns=columns)
    names = display_names([str(Path(*Path(path).parts[-2:])) for path in shown])
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, path, name, distance in zip(axes, shown, names, below, strict=False):
        pixels = read_thumbnail(path)
        if pixels is None:
            ax.text(0.5, 0.5, "no image", ha="center", va="center", color=THEMES[theme].muted)
        else:
            ax.imshow(pixels)
        colour = THEMES[theme].text
        ax.set_title(name + distance, fontsize=7, color=colour, fontfamily=font_families())
    return figure
