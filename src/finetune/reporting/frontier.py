"""What backbones cost and are worth: accuracy against milliseconds, on a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from finetune.combining.backbone_choice import BackboneChoice, Trial
from finetune.evaluation.judgement import readable
from finetune.reporting.page import PageFigure, render
from finetune.reporting.style import THEMES, ThemeName, display_names, new_axes, to_png

COLUMNS = (
    ("backbone", "text"),
    ("judged", "text"),
    *((title, "number") for title in ("images", "accuracy", "NLL", "ms an image", "MB")),
    ("licence", "text"),
)


def render_choice(
    title: str,
    found: BackboneChoice,
    *,
    left_out: Mapping[str, str],
    conclusion: Sequence[str],
) -> str:
    """The page as text."""
    light, dark = (to_png(frontier_figure(found, theme=theme)) for theme in ("light", "dark"))
    caption = (
        "Accuracy, with 95 % intervals, against the time of an image. Orange: the one to take. "
        "Hollow: left behind on fewer images. The line joins those that no quicker one betters."
    )
    return render(
        "choice.html.j2",
        title,
        named=found.named.name,
        conclusion=conclusion,
        figure=PageFigure("frontier", caption, light, dark, wide=True),
        images=found.best.images,
        columns=COLUMNS,
        rows=[_row(trial, found) for trial in (*found.trials, *found.earlier)],
        left_out=left_out,
    )


def frontier_figure(found: BackboneChoice, *, theme: ThemeName = "light") -> Figure:
    """A point a backbone with its 95 % interval; those left behind earlier are hollow."""
    colours = THEMES[theme]
    figure, (ax,) = new_axes(theme, 9, 4.6)
    every = (*found.trials, *found.earlier)
    for trial, name in zip(
        every, display_names([each.name for each in every], limit=44), strict=True
    ):
        low, high = trial.accuracy_interval
        last, place = trial in found.trials, (trial.milliseconds, 100 * trial.accuracy)
        colour = colours.orange if trial is found.named else colours.blue if last else colours.muted
        ax.errorbar(
            *place,
            yerr=[[place[1] - 100 * low], [100 * high - place[1]]],
            fmt="o" if last else "none",
            color=colour,
            capsize=3,
            linewidth=1.2,
            markersize=7,
        )
        if not last:
            ax.plot(*place, "o", color=colour, fillstyle="none", markersize=7)
        ax.annotate(name, place, (8, 6), textcoords="offset points", color=colours.text, fontsize=9)
    line = unbeaten(found.trials)
    places = ([each.milliseconds for each in line], [100 * each.accuracy for each in line])
    ax.plot(*places, "--", color=colours.blue, linewidth=1.2)
    ax.set(xlabel="milliseconds an image", ylabel="accuracy (%)")
    ax.margins(x=0.22)
    ax.grid(color=colours.grid, linewidth=0.7)
    return figure


def unbeaten(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other betters in accuracy without more time, the quickest first."""
    line: list[Trial] = []
    for trial in sorted(trials, key=lambda each: (each.milliseconds, -each.accuracy)):
        if not line or trial.accuracy > line[-1].accuracy:
            line.append(trial)
    return line


def _row(trial: Trial, found: BackboneChoice) -> list[tuple[str | float, str]]:
    low, high = trial.accuracy_interval
    verdict = "earlier" if trial not in found.trials else "last round"
    verdict = "as good as the best" if trial in found.equals else verdict
    verdict = "named" if trial is found.named else verdict
    return [
        (trial.name, trial.name),
        (verdict, verdict),
        (trial.images, f"{trial.images:,}"),
        (
            trial.accuracy,
            f"{readable(trial.accuracy, 'share')} [{100 * low:.1f}, {100 * high:.1f}]",
        ),
        (trial.nll, f"{trial.nll:.3f} ± {trial.standard_error:.3f}"),
        (trial.milliseconds, f"{trial.milliseconds:.1f}"),
        (trial.megabytes, f"{trial.megabytes:.1f}"),
        (trial.licence, trial.licence or "not known"),
    ]
