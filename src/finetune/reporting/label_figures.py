"""Figures of several labels an image: how well each is found, missed, and which stand together."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from finetune.evaluation.label_evaluation import LabelEvaluation
from finetune.reporting.figures import ROWS, legend_below, rows_size
from finetune.reporting.style import (
    MANY,
    THEMES,
    ThemeName,
    display_names,
    names_width,
    new_axes,
    set_names,
)
from finetune.tasks.class_scores import Floats

NUMBERS_IN_CELLS = 14


def per_label_figure(evaluation: LabelEvaluation, *, theme: ThemeName = "light") -> Figure:
    """Average precision of each label with its interval, and F1, the worst first.

    Of more than 20 labels the 20 worst are shown.
    """
    scores = evaluation.per_label
    defined = [index for index, each in enumerate(scores) if each.support]
    worst = sorted(defined, key=lambda index: scores[index].ap)[:ROWS]
    names = display_names(evaluation.class_names)
    figure, (ax,) = new_axes(theme, *rows_size(len(names)))
    colours = THEMES[theme]
    for row, index in enumerate(worst):
        ends = evaluation.label_interval(index, "ap") or (scores[index].ap, scores[index].ap)
        ax.plot(100 * np.array(ends), [row, row], color=colours.blue, linewidth=2.4, alpha=0.5)
    rows = np.arange(len(worst))
    ap = [100 * scores[index].ap for index in worst]
    f1 = [100 * scores[index].f1 for index in worst]
    ax.scatter(ap, rows, s=34, color=colours.blue, zorder=3, label="AP with 95 % interval")
    marks = ax.scatter(f1, rows, s=30, marker="D", zorder=4, label="F1 at its threshold")
    marks.set(facecolors="none", edgecolors=colours.orange, linewidths=1.4)
    few = evaluation.few
    titles = [f"{names[i]} ({scores[i].support}{', few' if few[i] else ''})" for i in worst]
    set_names(ax.yaxis, rows.tolist(), titles)
    ax.set_ylim(len(worst) - 0.4, -0.6)
    which = f"the {len(worst)} worst of {len(defined)}, " if len(worst) < len(defined) else ""
    ax.set(xlim=(-2, 102), xlabel="%", ylabel=f"{which}label (images)")
    ax.grid(axis="x", color=colours.grid, linewidth=0.7)
    legend_below(figure, theme)
    return figure


def most_missed_figure(evaluation: LabelEvaluation, *, theme: ThemeName = "light") -> Figure:
    """Images with each label that were found and missed, and others it was named for.

    Most missed first; of more than 20 labels the first 20.
    """
    missed, added = evaluation.missed.sum(axis=0), evaluation.added.sum(axis=0)
    support = np.array([each.support for each in evaluation.per_label])
    order = np.lexsort((-added, -missed))[:ROWS]
    names = display_names(evaluation.class_names)
    figure, (ax,) = new_axes(theme, *rows_size(len(names)))
    colours, rows = THEMES[theme], np.arange(len(order))
    found, lost = (support - missed)[order], missed[order]
    ax.barh(rows, found, color=colours.blue, label="found", height=0.75)
    ax.barh(rows, lost, left=found, color=colours.orange, label="missed", height=0.75)
    ax.barh(rows, -added[order], color=colours.muted, label="named, not there", height=0.75)
    ax.axvline(0, color=colours.text, linewidth=0.8)
    ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    set_names(ax.yaxis, rows.tolist(), [names[index] for index in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set(xlabel="images", ylabel="label")
    legend_below(figure, theme)
    return figure


def co_occurrence_figure(evaluation: LabelEvaluation, *, theme: ThemeName = "light") -> Figure:
    """Which labels stand together: on file at the left, as named at the right.

    Of more than 40 labels those that most images have.
    """
    support = np.array([each.support for each in evaluation.per_label])
    chosen = np.sort(np.argsort(-support, kind="stable")[:MANY])
    truth, named = (evaluation.targets == 1)[:, chosen], evaluation.named[:, chosen]
    names = display_names([evaluation.class_names[index] for index in chosen], limit=18)
    size = 9 if len(chosen) <= NUMBERS_IN_CELLS else 6.5
    side = float(np.clip(0.42 * len(chosen), 2.2, 5.2))
    room = names_width(names, size)
    figure, axes = new_axes(theme, 2 * side + room + 1.8, side + room + 1.1, columns=2)
    colours = THEMES[theme]
    rows = list(range(len(chosen)))
    for ax, having, title in zip(axes, (truth, named), ("on file", "as named"), strict=True):
        share = _shares(having)
        image = ax.imshow(share, cmap=colours.colormap, vmin=0, vmax=1, interpolation="nearest")
        set_names(ax.xaxis, rows, names, fontsize=size, rotation=90)
        set_names(ax.yaxis, rows, names if ax is axes[0] else [""] * len(rows), fontsize=size)
        ax.set_title(title)
        if len(chosen) <= NUMBERS_IN_CELLS:
            for row, column in np.argwhere(share > 0):
                colour = colours.background if share[row, column] > 0.5 else colours.text
                text = f"{100 * share[row, column]:.0f}"
                ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.ax.tick_params(colors=colours.text, labelsize=8)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    bar.outline.set_edgecolor(colours.grid)
    return figure


def _shares(having: np.ndarray) -> Floats:
    """Of the images with the row's label, the share with the column's; ``(N, K)`` to ``(K, K)``."""
    counts = having.astype(np.float64)
    together = counts.T @ counts
    support = np.diagonal(together)[:, None]
    return np.divide(together, support, out=np.zeros_like(together), where=support > 0)
