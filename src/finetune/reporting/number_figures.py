"""Figures of a number an image: what was answered, and how far it is off."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.number_answers import range_name
from finetune.evaluation.number_evaluation import NumberEvaluation
from finetune.reporting.figures import TRUST_SIZE, legend_below, rows_size
from finetune.reporting.style import THEMES, ThemeName, display_names, new_axes, set_names
from finetune.tasks.class_scores import Floats

CROWD = 300  # from so many points on they are drawn smaller and fainter


def predicted_figure(evaluation: NumberEvaluation, *, theme: ThemeName = "light") -> Figure:
    """Each image's answer over its true number; right answers lie on the dashed line.

    The band is what intervals hold: a point outside of it has its true number outside its interval.
    """
    figure, (ax,) = new_axes(theme, *TRUST_SIZE)
    both = np.concatenate([evaluation.truth, evaluation.answers])
    line = np.array([both.min(), both.max()])
    ax.plot(line, line, color=THEMES[theme].muted, linestyle="--", linewidth=1, label="right")
    _band(ax, line, line, evaluation.half_width, theme)
    _points(ax, evaluation, evaluation.truth, evaluation.answers, theme)
    (name,) = display_names(evaluation.class_names)
    ax.set(xlabel=f"{name} on file", ylabel=f"{name} as predicted")
    legend_below(figure, theme)
    return figure


def residuals_figure(evaluation: NumberEvaluation, *, theme: ThemeName = "light") -> Figure:
    """How far each answer is off, over the answer: above zero it is too high."""
    figure, (ax,) = new_axes(theme, *TRUST_SIZE)
    line = np.array([evaluation.answers.min(), evaluation.answers.max()])
    ax.axhline(0, color=THEMES[theme].muted, linestyle="--", linewidth=1, label="right")
    _band(ax, line, np.zeros(2), evaluation.half_width, theme)
    _points(ax, evaluation, evaluation.answers, evaluation.residuals, theme)
    (name,) = display_names(evaluation.class_names)
    ax.set(xlabel=f"{name} as predicted", ylabel="predicted less true")
    legend_below(figure, theme)
    return figure


def ranges_figure(evaluation: NumberEvaluation, *, theme: ThemeName = "light") -> Figure:
    """MAE of each part of the range with its interval, and how much too high answers are."""
    parts = evaluation.ranges
    figure, (ax,) = new_axes(theme, *rows_size(len(parts)))
    colours, rows = THEMES[theme], np.arange(len(parts))
    for row, part in enumerate(parts):
        ends = part["mae_low"], part["mae_high"]
        ax.plot(ends, [row, row], color=colours.blue, linewidth=2.4, alpha=0.5)
    errors = [part["mae"] for part in parts]
    ax.scatter(errors, rows, s=34, color=colours.blue, zorder=3, label="MAE with 95 % interval")
    biases = [part["bias"] for part in parts]
    marks = ax.scatter(biases, rows, s=30, marker="D", zorder=4, label="too high by")
    marks.set(facecolors="none", edgecolors=colours.orange, linewidths=1.4)
    ax.axvline(0, color=colours.muted, linewidth=1, linestyle="--")
    names = [f"{range_name(part)} ({part['support']})" for part in parts]
    set_names(ax.yaxis, rows.tolist(), names)
    ax.set_ylim(len(parts) - 0.4, -0.6)
    (name,) = display_names(evaluation.class_names)
    ax.set(xlabel=name, ylabel=f"{name} on file (images)")
    ax.grid(axis="x", color=colours.grid, linewidth=0.7)
    legend_below(figure, theme)
    return figure


def _band(ax: Axes, at: Floats, middle: Floats, half_width: float | None, theme: ThemeName) -> None:
    if half_width is not None:
        ends, colour = (middle - half_width, middle + half_width), THEMES[theme].blue
        label = f"interval, ± {half_width:.4g}"
        ax.fill_between(at, *ends, color=colour, alpha=0.15, linewidth=0, label=label)


def _points(
    ax: Axes, evaluation: NumberEvaluation, across: Floats, up: Floats, theme: ThemeName
) -> None:
    """Images as points; those outside of their interval stand out."""
    size, opacity = (22, 0.7) if len(across) < CROWD else (9, 0.45)
    half_width = np.inf if evaluation.half_width is None else evaluation.half_width
    outside = evaluation.losses > half_width
    colours = THEMES[theme]
    kinds = ((~outside, colours.blue, "o", "image"), (outside, colours.orange, "D", "outside"))
    for own, colour, marker, label in kinds:
        if own.any():
            where = across[own], up[own]
            ax.scatter(*where, s=size, color=colour, marker=marker, alpha=opacity, label=label)
    ax.grid(color=colours.grid, linewidth=0.7)
