"""Figures of an evaluation: one function, one figure, in light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from finetune.evaluation.intervals import wilson_interval
from finetune.evaluation.judgement import Judgement
from finetune.evaluation.result import ClassScores, Evaluation
from finetune.reporting.style import (
    MANY,
    THEMES,
    ThemeName,
    display_names,
    names_width,
    new_axes,
    set_names,
)
from finetune.tasks.class_scores import ConfidenceBins, Floats

ROWS = 20  # of a figure with a row a class; of more classes the worst ones
TRUST_SIZE = (5.2, 4.2)  # inches
MARKED_CONFUSIONS = 10


def confusion_figure(evaluation: Evaluation, *, theme: ThemeName = "light") -> Figure:
    """Images by label, in rows, and prediction, in columns.

    Up to 20 classes have their numbers in the cells. Of more than 40 classes only some rows carry a
    name, and the most frequent confusions are circled and listed instead.
    """
    matrix = evaluation.confusion.astype(float)
    n_classes = len(matrix)
    names = display_names(evaluation.class_names, limit=24 if n_classes <= MANY else 18)
    numbers = n_classes <= ROWS
    size = 9 if numbers else 7.5
    flat = n_classes <= 8 and max(map(len, names)) <= 5
    side, room = min(0.4 * n_classes, 7.5), names_width(names, size)
    listed = 2.2 if n_classes > MANY else 0.0  # inches of text below
    inches = rows_size(n_classes) if numbers else (side + room + 1.7, side + room + listed + 1.1)
    figure, (ax,) = new_axes(theme, *inches)
    # Single errors stay visible beside hundreds of right answers.
    norm = PowerNorm(0.5, vmin=0, vmax=max(matrix.max(), 1.0))
    shape: dict[str, Any] = {"aspect": "auto"} if numbers else {"interpolation": "nearest"}
    image = ax.imshow(matrix, cmap=THEMES[theme].colormap, norm=norm, **shape)
    every = math.ceil(n_classes / MANY)
    shown = list(range(0, n_classes, every))
    rotation = 0 if flat else 90
    set_names(ax.xaxis, shown, [names[i] for i in shown], fontsize=size, rotation=rotation)
    set_names(ax.yaxis, shown, [names[i] for i in shown], fontsize=size)
    ax.set(xlabel="prediction", ylabel="label")
    if numbers:
        _write_numbers(ax, matrix, theme)
    else:
        _colour_bar(figure, ax, image, theme)
    if n_classes > MANY:
        _circle_confusions(ax, evaluation, theme)
    return figure


def _colour_bar(figure: Figure, ax: Axes, image: AxesImage, theme: ThemeName) -> None:
    """With few ticks, for a root scale crowds them at its upper end."""
    highest = float(image.get_clim()[1] or 1)
    ticks = sorted({float(round(share * highest)) for share in (0, 0.1, 0.4, 1)})
    bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02, ticks=ticks)
    bar.ax.tick_params(colors=THEMES[theme].text, labelsize=8)
    bar.set_label("images", color=THEMES[theme].text)
    bar.outline.set_edgecolor(THEMES[theme].grid)


def _write_numbers(ax: Axes, matrix: Floats, theme: ThemeName) -> None:
    colours = THEMES[theme]
    size = 10 if len(matrix) <= 12 else 7.5
    for row, column in np.argwhere(matrix > 0):
        value = matrix[row, column]
        on_strong = math.sqrt(value / matrix.max()) > 0.62
        colour = colours.background if on_strong else colours.text
        ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=size)


def _circle_confusions(ax: Axes, evaluation: Evaluation, theme: ThemeName) -> None:
    names = dict(zip(evaluation.class_names, display_names(evaluation.class_names), strict=True))
    index = {name: i for i, name in enumerate(evaluation.class_names)}
    pairs = evaluation.confused_pairs(MARKED_CONFUSIONS)
    if not pairs:
        return
    columns, rows = [index[p.prediction] for p in pairs], [index[p.label] for p in pairs]
    colour = THEMES[theme].orange
    ax.scatter(columns, rows, s=70, facecolors="none", edgecolors=colour, linewidths=1.2)
    lines = [f"{p.count}× {names[p.label]} → {names[p.prediction]}" for p in pairs]
    text = "\n".join(["prediction", "", "Circled, the most frequent confusions:", *lines])
    ax.set_xlabel(text, fontsize=8.5, loc="left", multialignment="left")


def rows_size(rows: int) -> tuple[float, float]:
    """Inches of a figure with a row a class: one height, whatever it shows of each."""
    return 5.2, max(2.6, 1.5 + 0.24 * min(rows, ROWS))


class HasBins(Protocol):
    """Answers that are as sure as they say, or not."""

    @property
    def calibration(self) -> ConfidenceBins:
        """By how sure they are."""


def reliability_figure(
    evaluation: HasBins,
    *,
    axes: tuple[str, str, str] = ("confidence", "accuracy", "images"),
    theme: ThemeName = "light",
) -> Figure:
    """How often the classifier is right when it is so sure; below, how often it is so sure."""
    figure, (ax, below) = new_axes(
        theme, *TRUST_SIZE, rows=2, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
    )
    colours = THEMES[theme]
    bins = evaluation.calibration
    centres = (bins.edges[:-1] + bins.edges[1:]) / 2
    width = bins.edges[1] - bins.edges[0]
    filled = bins.counts > 0
    ax.plot([0, 1], [0, 1], "--", color=colours.muted, linewidth=1.2, label="perfectly calibrated")
    ax.bar(centres[filled], bins.accuracy[filled], width * 0.94, color=colours.blue, alpha=0.85)
    _bin_intervals(ax, bins, centres, colours.text)
    ax.scatter(
        bins.confidence[filled],
        bins.accuracy[filled],
        s=22,
        color=colours.orange,
        zorder=3,
        label=f"mean {axes[0]} of the bin",
    )
    below.bar(centres, bins.counts, width * 0.94, color=colours.muted)
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1.03),
        ylabel=axes[1],
    )
    below.set(xlabel=axes[0], ylabel=axes[2])
    legend_below(figure, theme)
    return figure


def _bin_intervals(ax: Axes, bins: ConfidenceBins, centres: Floats, colour: str) -> None:
    for centre, count, accuracy in zip(centres, bins.counts, bins.accuracy, strict=True):
        if count:
            low, high = wilson_interval(round(float(accuracy * count)), int(count))
            ax.plot([centre, centre], [low, high], color=colour, linewidth=1)


def coverage_risk_figure(evaluation: Evaluation, *, theme: ThemeName = "light") -> Figure:
    """The error rate that is left when only the surest share of the images is answered."""
    figure, (ax,) = new_axes(theme, *TRUST_SIZE)
    colours = THEMES[theme]
    ax.step(
        100 * evaluation.coverage, 100 * evaluation.risk, where="post", color=colours.blue, lw=2
    )
    ax.axhline(100 * (1 - evaluation.accuracy), color=colours.muted, linewidth=1, linestyle="--")
    ax.annotate(
        f"error rate of all answers: {100 * (1 - evaluation.accuracy):.1f} %",
        (1, 100 * (1 - evaluation.accuracy)),
        xytext=(0, 4),
        textcoords="offset points",
        color=colours.muted,
        fontsize=8.5,
    )
    top = max(100 * evaluation.risk.max(), 1) * 1.15
    ax.set(
        xlim=(0, 100),
        ylim=(0, top),
        xlabel="coverage: share of images answered, surest first (%)",
        ylabel="error rate among them (%)",
    )
    ax.grid(color=colours.grid, linewidth=0.7)
    return figure


def per_class_figure(evaluation: Evaluation, *, theme: ThemeName = "light") -> Figure:
    """Recall of each class with its interval, and precision, worst recall first.

    Of more than 20 classes the 20 worst are shown.
    """
    with_images = [scores for scores in evaluation.per_class if scores.support]
    worst = sorted(with_images, key=lambda scores: scores.recall)[:ROWS]
    display = dict(zip(evaluation.class_names, display_names(evaluation.class_names), strict=True))
    figure, (ax,) = new_axes(theme, *rows_size(len(evaluation.class_names)))
    for row, scores in enumerate(worst):
        _class_row(ax, row, scores, theme, label=row == 0)
    names = [f"{display[s.name]} ({s.support}{', few' if s.few_images else ''})" for s in worst]
    set_names(ax.yaxis, range(len(worst)), names)
    ax.set_ylim(len(worst) - 0.4, -0.6)
    which = (
        "" if len(worst) == len(with_images) else f"the {len(worst)} worst of {len(with_images)}, "
    )
    ax.set(xlim=(-2, 102), xlabel="%", ylabel=f"{which}class (images)")
    ax.grid(axis="x", color=THEMES[theme].grid, linewidth=0.7)
    legend_below(figure, theme)
    return figure


def legend_below(figure: Figure, theme: ThemeName) -> None:
    """A legend under the axes."""
    figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=THEMES[theme].text)


def _class_row(ax: Axes, row: int, scores: ClassScores, theme: ThemeName, *, label: bool) -> None:
    colours = THEMES[theme]
    low, high = scores.recall_interval
    ax.plot([100 * low, 100 * high], [row, row], color=colours.blue, linewidth=2.4, alpha=0.5)
    ax.scatter(
        100 * scores.recall,
        row,
        s=34,
        color=colours.blue,
        zorder=3,
        label="recall with 95 % interval" * label or None,
    )
    if not math.isnan(scores.precision):
        ax.scatter(
            100 * scores.precision,
            row,
            s=30,
            marker="D",
            facecolors="none",
            edgecolors=colours.orange,
            linewidths=1.4,
            zorder=4,
            label="precision" * label or None,
        )


def class_balance_figure(
    counts: Mapping[str, Mapping[str, int]], *, what: str = "class", theme: ThemeName = "light"
) -> Figure:
    """Images of each class or label by split, ``{split: {class: images}}``, largest class first.

    More than 20 are drawn as a curve over their rank.
    """
    totals: dict[str, int] = {}
    for images in counts.values():
        for name, count in images.items():
            totals[name] = totals.get(name, 0) + count
    order = sorted(totals, key=lambda name: -totals[name])
    figure, (ax,) = new_axes(theme, *rows_size(len(order)))
    palette = THEMES[theme].palette
    positions = np.arange(len(order))
    start = np.zeros(len(order))
    for colour, (split, of_split) in zip(palette, counts.items(), strict=False):
        values = np.array([of_split.get(name, 0) for name in order], dtype=float)
        if len(order) > ROWS:
            ax.fill_between(positions, start, start + values, color=colour, label=split, lw=0)
        else:
            ax.barh(positions, values, left=start, color=colour, label=split, height=0.75)
        start += values
    if len(order) > ROWS:
        ax.set(xlim=(0, len(order) - 1), xlabel=f"{len(order)} names, largest first")
        ax.set_ylabel("images")
    else:
        set_names(ax.yaxis, positions.tolist(), display_names(order))
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.set(xlabel="images", ylabel=what)
    legend_below(figure, theme)
    return figure


def leaderboard_figure(
    evaluations: Mapping[str, Judgement], *, theme: ThemeName = "light"
) -> Figure:
    """The leading figure of several classifiers with its 95 % interval, in the order given."""
    figure, (ax,) = new_axes(theme, 5.2, 1.3 + 0.34 * len(evaluations))
    colours = THEMES[theme]
    leads = [evaluation.leading[0] for evaluation in evaluations.values()]
    scale = 100 if leads[0].kind == "share" else 1
    for row, lead in enumerate(leads):
        ends = scale * np.array(lead.interval or (lead.value, lead.value))
        ax.plot(ends, [row, row], color=colours.blue, linewidth=2.6, alpha=0.5)
        ax.scatter(scale * lead.value, row, s=40, color=colours.blue, zorder=3)
    set_names(ax.yaxis, range(len(evaluations)), display_names(list(evaluations), limit=36))
    ax.set_ylim(len(evaluations) - 0.4, -0.6)
    ax.set(xlabel=leads[0].name + (" (%)" if leads[0].kind == "share" else ""))
    ax.grid(axis="x", color=colours.grid, linewidth=0.7)
    return figure
