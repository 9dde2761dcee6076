"""How much the members of an ensemble differ, pair by pair, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.combining.diversity import Diversity
from finetune.reporting.style import THEMES, ThemeName, display_names, new_axes, set_names
from finetune.tasks.class_scores import Floats

NUMBERED = 12  # up to so many members every cell holds its number


def diversity_figure(
    diversity: Diversity, member_names: Sequence[str], *, theme: ThemeName = "light"
) -> Figure:
    """Two matrices of ``M`` members: how often they disagree, and how their errors correlate.

    Members that seldom disagree and err together bring each other nothing.
    """
    names = display_names(short_names(member_names), limit=24)
    side = float(np.clip(0.5 * len(names) + 1.6, 3.2, 8))
    figure, (left, right) = new_axes(theme, 2 * side + 1, side + 0.6, columns=2)
    disagreement = diversity.disagreement.numpy()
    _matrix(left, disagreement, names, theme, top=max(float(disagreement.max()), 1e-9), unit="%")
    left.set_title("Different answers (share of the images)")
    _matrix(right, diversity.error_correlation.numpy(), names, theme, top=1.0)
    right.set_title("Correlation of the errors")
    figure.suptitle(
        f"one of them is right for {100 * diversity.oracle_accuracy:.1f} % of the images",
        color=THEMES[theme].text,
        fontsize=10,
    )
    return figure


def short_names(names: Sequence[str]) -> list[str]:
    """What tells files of runs apart: without the folders that all share, and without endings."""
    parts = [
        [part for part in Path(name).with_suffix("").parts if part != "checkpoints"]
        for name in names
    ]
    shortest = min(map(len, parts))
    first = next((n for n in range(shortest) if len({p[n] for p in parts}) > 1), shortest - 1)
    last = next((n for n in range(shortest) if len({p[-1 - n] for p in parts}) > 1), 0)
    return ["/".join(part[first : len(part) - last]) for part in parts]


def _matrix(
    ax: Axes, values: Floats, names: Sequence[str], theme: ThemeName, *, top: float, unit: str = ""
) -> None:
    colours = THEMES[theme]
    ax.imshow(values, cmap=colours.colormap, vmin=0, vmax=top, interpolation="nearest")
    shown = list(range(len(names)))
    set_names(ax.xaxis, shown, names, fontsize=8, rotation=90)
    set_names(ax.yaxis, shown, names, fontsize=8)
    if len(names) > NUMBERED:
        return
    for (row, column), value in np.ndenumerate(values):
        text = f"{100 * value:.1f} %" if unit == "%" else f"{value:.2f}"
        colour = colours.background if value > 0.6 * top else colours.text
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
