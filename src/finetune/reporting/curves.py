"""Figures of a fit: what was learned when, and at what learning rate."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune.csv_table import own_rows
from finetune.errors import DataError
from finetune.reporting.style import THEMES, ThemeName, add_legend, escape_math, new_axes

Curve = Sequence[tuple[float, float]]  # (epochs that are over, value)
LEARNING_RATE = "lr"  # Lightning's LearningRateMonitor names its curves lr-...
AT_MOST = 6  # panels
CURVE_SIZE = (5.2, 3.1)  # inches
SHORT = {"map": "mAP", "mae": "MAE", "nll": "NLL"}
NOT_A_METRIC = ("phase", "epoch", "step")


def read_curves(metrics_csv: Path) -> dict[str, list[tuple[float, float]]]:
    """Curves by name from the ``metrics.csv`` of a run, none where there is none.

    An empty field is no point of a curve.

    Raises:
        DataError: the file is no such table.
    """
    try:
        rows = own_rows(metrics_csv)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Expected a metrics.csv at {metrics_csv}: {error}") from error
    curves: dict[str, list[tuple[float, float]]] = {}
    finished = _finished_epochs(rows)
    for number, row in enumerate(rows):
        for name, text in row.items():
            value = _number(text)
            if name and name not in NOT_A_METRIC and value is not None:
                over = finished.get(number, float(number))
                if _number(row.get("phase")) is not None:
                    # One row an epoch, through all phases; its learning rate is that at its start.
                    over = float(number if _is_learning_rate(name) else number + 1)
                curves.setdefault(name, []).append((over, value))
    return curves


def _finished_epochs(rows: Sequence[Mapping[str, str]]) -> dict[int, float]:
    """How many epochs were over at each row; by its step for a row without an epoch."""
    epochs, steps = ([_number(row.get(name)) for row in rows] for name in ("epoch", "step"))
    known = {
        step + 1: epoch + 1
        for step, epoch in zip(steps, epochs, strict=True)
        if step is not None and epoch is not None
    }
    at_steps = [0.0, *sorted(known)]
    over = [0.0, *(known[step] for step in sorted(known))]
    finished = {}
    for number, (step, epoch) in enumerate(zip(steps, epochs, strict=True)):
        if epoch is not None:
            finished[number] = epoch + 1
        elif step is not None and known:
            finished[number] = float(np.interp(step, at_steps, over))
    return finished


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def panels_of(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves by stage of each metric, the most telling first: ``train/loss`` and ``val/loss`` share
    the panel ``loss``.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        stage, _, metric = name.rpartition("/")
        if curve and not _is_learning_rate(name) and stage != "test":
            panels.setdefault(metric, {})[stage or metric] = curve
    order = sorted(panels, key=_importance)
    return {SHORT.get(metric, metric.replace("_", " ")): panels[metric] for metric in order}


def panel_figure(title: str, stages: Mapping[str, Curve], *, theme: ThemeName = "light") -> Figure:
    """One metric over the fit."""
    figure, (ax,) = new_axes(theme, *CURVE_SIZE)
    _panel(ax, title, stages, theme)
    return figure


def learning_curves_figure(
    panels: Mapping[str, Mapping[str, Curve]], *, theme: ThemeName = "light"
) -> Figure:
    """Several metrics side by side, from :func:`panels_of`, at least one."""
    shown = dict(list(panels.items())[:AT_MOST])
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = new_axes(theme, 3.6 * columns + 0.6, 2.9 * rows, rows=rows, columns=columns)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    for ax, (title, stages) in zip(axes, shown.items(), strict=False):
        _panel(ax, title, stages, theme)
    return figure


def learning_rate_figure(curves: Mapping[str, Curve], *, theme: ThemeName = "light") -> Figure:
    """The course of the learning rates, one line a parameter group, on a logarithmic axis."""
    rates: dict[str, Curve] = {}
    for name, curve in curves.items():
        # Groups that differ in weight decay alone share a rate: one line for both.
        if _is_learning_rate(name) and curve and list(curve) not in map(list, rates.values()):
            rates[name] = curve
    figure, (ax,) = new_axes(theme, *CURVE_SIZE)
    _panel(ax, "learning rate", rates, theme)
    if any(value > 0 for curve in rates.values() for _, value in curve):
        ax.set_yscale("log")
    return figure


def has_learning_rates(curves: Mapping[str, Curve]) -> bool:
    """Whether there is a learning rate to draw."""
    return any(_is_learning_rate(name) and curve for name, curve in curves.items())


def _is_learning_rate(name: str) -> bool:
    return any(part.split("-")[0] == LEARNING_RATE for part in name.split("/"))


def _importance(metric: str) -> tuple[int, str]:
    first = ("loss", "accuracy", "map", "mae", "nll", "balanced_accuracy", "macro_f1")
    return (first.index(metric) if metric in first else len(first), metric)


def _panel(ax: Axes, title: str, lines: Mapping[str, Curve], theme: ThemeName) -> None:
    colours = THEMES[theme]
    styles = ("-", "--", ":", "-.")  # told apart also without colour
    for index, (name, curve) in enumerate(sorted(lines.items())):  # train before val
        epochs, values = zip(*sorted(curve, key=lambda point: point[0]), strict=True)
        ax.plot(
            epochs,
            values,
            styles[index % len(styles)],
            color=colours.palette[index % len(colours.palette)],
            linewidth=1.8,
            marker="o" if len(values) <= 30 else None,
            markersize=3.5,
            label=escape_math(name),
        )
    ax.set(xlabel="epochs", ylabel=escape_math(title))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(color=colours.grid, linewidth=0.7)
    if 0 < len(lines) <= 8:
        add_legend(ax, theme, loc="best")
