"""Figures of an evaluation: one function, one figure, in light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

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
    set_title,
)
from finetune.tasks.class_scores import ConfidenceBins, Floats

NUMBERS_IN_CELLS = 20  # up to here every cell of a confusion matrix holds its number
MARKED_CONFUSIONS = 10


def confusion_figure(
    evaluation: Evaluation, *, normalise: bool = False, theme: ThemeName = "light"
) -> Figure:
    """Labels in rows, predictions in columns: counts, or shares of each row.

    With more than 40 classes only some rows carry a name, and the most frequent confusions are
    circled and listed instead.
    """
    matrix = evaluation.confusion.astype(float)
    if normalise:
        support = matrix.sum(axis=1, keepdims=True)
        matrix = np.divide(matrix, support, out=np.zeros_like(matrix), where=support > 0)
    n_classes = len(matrix)
    names = display_names(evaluation.class_names, limit=24 if n_classes <= MANY else 18)
    size = 9 if n_classes <= 20 else 7.5
    flat = n_classes <= 8 and max(map(len, names)) <= 10
    side = float(np.clip(0.4 * n_classes, 2.4, 7.5))
    room = names_width(names, size)
    listed = 2.2 if n_classes > MANY else 0.0  # inches of text below
    below = (0.3 if flat else room) + listed
    figure, (ax,) = new_axes(theme, side + room + 1.7, side + below + 1.1)
    colours = THEMES[theme]
    # Single errors stay visible beside hundreds of right answers.
    highest = 1.0 if normalise else max(matrix.max(), 1.0)
    norm = PowerNorm(0.5, vmin=0, vmax=highest)
    image = ax.imshow(matrix, cmap=colours.colormap, norm=norm, interpolation="nearest")
    _colour_bar(figure, ax, image, normalise=normalise, theme=theme)
    every = math.ceil(n_classes / MANY)
    shown = list(range(0, n_classes, every))
    rotation = 0 if flat else 90
    set_names(ax.xaxis, shown, [names[i] for i in shown], fontsize=size, rotation=rotation)
    set_names(ax.yaxis, shown, [names[i] for i in shown], fontsize=size)
    if n_classes <= NUMBERS_IN_CELLS:
        _write_numbers(ax, matrix, highest, normalise, theme)
    what = "share of the label's images" if normalise else "images"
    ax.set(xlabel="prediction", ylabel="label")
    set_title(figure, theme, f"Confusion matrix ({what})")
    if n_classes > MANY:
        _circle_confusions(ax, evaluation, theme)
    return figure


def _colour_bar(
    figure: Figure, ax: Axes, image: AxesImage, *, normalise: bool, theme: ThemeName
) -> None:
    """With few ticks, for a root scale crowds them at its upper end."""
    ticks = [share * float(image.get_clim()[1] or 1) for share in (0, 0.1, 0.4, 1)]
    if not normalise:
        ticks = sorted({float(round(tick)) for tick in ticks})
    bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02, ticks=ticks)
    bar.ax.tick_params(colors=THEMES[theme].text, labelsize=8)
    if normalise:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    bar.outline.set_edgecolor(THEMES[theme].grid)


def _write_numbers(
    ax: Axes, matrix: Floats, highest: float, normalise: bool, theme: ThemeName
) -> None:
    colours = THEMES[theme]
    size = 10 if len(matrix) <= 8 else 7.5
    for row, column in np.argwhere(matrix > 0):
        value = matrix[row, column]
        text = f"{100 * value:.0f} %" if normalise else f"{value:.0f}"
        on_strong = math.sqrt(value / highest) > 0.62
        colour = colours.background if on_strong else colours.text
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


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
        theme, 5, 5.4, rows=2, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
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
        title=f"Reliability: calibration error {100 * bins.error:.1f} %",
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
    figure, (ax,) = new_axes(theme, 5.4, 3.8)
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
        title=f"Coverage against risk: area {evaluation.aurc:.4f}",
    )
    ax.grid(color=colours.grid, linewidth=0.7)
    return figure


def per_class_figure(evaluation: Evaluation, *, theme: ThemeName = "light") -> Figure:
    """Recall of each class with its interval, and precision, worst recall first.

    Of more than 40 classes the 40 worst are shown.
    """
    with_images = [scores for scores in evaluation.per_class if scores.support]
    worst = sorted(with_images, key=lambda scores: scores.recall)[:MANY]
    display = dict(zip(evaluation.class_names, display_names(evaluation.class_names), strict=True))
    figure, (ax,) = new_axes(theme, 6.4, 1.5 + 0.24 * len(worst))
    for row, scores in enumerate(worst):
        _class_row(ax, row, scores, theme, label=row == 0)
    names = [f"{display[s.name]} ({s.support}{', few' if s.few_images else ''})" for s in worst]
    set_names(ax.yaxis, range(len(worst)), names)
    ax.set_ylim(len(worst) - 0.4, -0.6)
    count = f"the {len(worst)} worst of {len(with_images)} classes"
    ax.set(xlim=(-2, 102), xlabel="%")
    which = count if len(worst) < len(with_images) else "by class"
    set_title(figure, theme, f"Recall and precision, {which} (with its images)")
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

    More than 40 are drawn as a curve over their rank.
    """
    totals: dict[str, int] = {}
    for images in counts.values():
        for name, count in images.items():
            totals[name] = totals.get(name, 0) + count
    order = sorted(totals, key=lambda name: -totals[name])
    figure, (ax,) = new_axes(theme, 6.4, 3.6 if len(order) > MANY else 1.4 + 0.24 * len(order))
    palette = THEMES[theme].palette
    positions = np.arange(len(order))
    start = np.zeros(len(order))
    for colour, (split, of_split) in zip(palette, counts.items(), strict=False):
        values = np.array([of_split.get(name, 0) for name in order], dtype=float)
        if len(order) > MANY:
            ax.fill_between(positions, start, start + values, color=colour, label=split, lw=0)
        else:
            ax.barh(positions, values, left=start, color=colour, label=split, height=0.75)
        start += values
    if len(order) > MANY:
        ax.set(xlim=(0, len(order) - 1), xlabel=f"{len(order)} names, largest first")
        ax.set_ylabel("images")
    else:
        set_names(ax.yaxis, positions.tolist(), display_names(order))
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.set_xlabel("images")
    set_title(figure, theme, f"{what.capitalize()} balance ({', '.join(counts)})")
    if len(counts) > 1:
        legend_below(figure, theme)
    return figure


def leaderboard_figure(
    evaluations: Mapping[str, Judgement], *, theme: ThemeName = "light"
) -> Figure:
    """The leading figure of several classifiers with its 95 % interval, in the order given."""
    figure, (ax,) = new_axes(theme, 6.4, 1.3 + 0.34 * len(evaluations))
    colours = THEMES[theme]
    leads = [evaluation.leading[0] for evaluation in evaluations.values()]
    scale = 100 if leads[0].kind == "share" else 1
    for row, lead in enumerate(leads):
        ends = scale * np.array(lead.interval or (lead.value, lead.value))
        ax.plot(ends, [row, row], color=colours.blue, linewidth=2.6, alpha=0.5)
        ax.scatter(scale * lead.value, row, s=40, color=colours.blue, zorder=3)
    set_names(ax.yaxis, range(len(evaluations)), display_names(list(evaluations), limit=36))
    ax.set_ylim(len(evaluations) - 0.4, -0.6)
    ax.set(xlabel="%" if leads[0].kind == "share" else leads[0].name)
    set_title(figure, theme, f"95 % interval of the {leads[0].name}")
    ax.grid(axis="x", color=colours.grid, linewidth=0.7)
    return figure
