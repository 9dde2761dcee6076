"""Figures of a number an image: what was answered, and how far it is off."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.number_evaluation import NumberEvaluation
from finetune.reporting.figures import legend_below
from finetune.reporting.style import THEMES, ThemeName, display_names, new_axes, set_title
from finetune.tasks.class_scores import Floats

CROWD = 300  # from so many points on they are drawn smaller and fainter


def predicted_figure(evaluation: NumberEvaluation, *, theme: ThemeName = "light") -> Figure:
    """Each image's answer over its true number; right answers lie on the dashed line.

    The band is what intervals hold: a point outside of it has its true number outside its interval.
    """
    figure, (ax,) = new_axes(theme, 6.4, 5.2)
    both = np.concatenate([evaluation.truth, evaluation.answers])
    line = np.array([both.min(), both.max()])
    ax.plot(line, line, color=THEMES[theme].muted, linestyle="--", linewidth=1, label="right")
    _band(ax, line, line, evaluation.half_width, theme)
    _points(ax, evaluation, evaluation.truth, evaluation.answers, theme)
    (name,) = display_names(evaluation.class_names)
    ax.set(xlabel=f"{name} on file", ylabel=f"{name} as predicted")
    set_title(figure, theme, f"{name}: predicted against true")
    legend_below(figure, theme)
    return figure


def residuals_figure(evaluation: NumberEvaluation, *, theme: ThemeName = "light") -> Figure:
    """How far each answer is off, over the answer: above zero it is too high."""
    figure, (ax,) = new_axes(theme, 6.4, 4.2)
    line = np.array([evaluation.answers.min(), evaluation.answers.max()])
    ax.axhline(0, color=THEMES[theme].muted, linestyle="--", linewidth=1, label="right")
    _band(ax, line, np.zeros(2), evaluation.half_width, theme)
    _points(ax, evaluation, evaluation.answers, evaluation.residuals, theme)
    (name,) = display_names(evaluation.class_names)
    ax.set(xlabel=f"{name} as predicted", ylabel="predicted less true")
    set_title(figure, theme, f"{name}: how far each answer is off")
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
