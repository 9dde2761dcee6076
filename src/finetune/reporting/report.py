"""A report folder: the page, the figures and the tables of one evaluation.

report/
├── index.html        everything at a glance, self-contained
├── metrics.json      the figures, with their intervals
├── per_class.csv    of several labels an image, per_label.csv; of numbers, per_range.csv
├── predictions.csv   path, label, prediction, confidence, p:<class>, ...
├── suspects.csv      images whose label should be looked at
└── figures/*.png
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune.distribution import own_version
from finetune.evaluation.comparison import Leaderboard
from finetune.evaluation.judgement import Judgement
from finetune.files import atomic_folder, write_bytes, write_text
from finetune.reporting import figures
from finetune.reporting.csv_files import write_parts, write_predictions
from finetune.reporting.details import ReportDetails as ReportDetails
from finetune.reporting.drawings import NAMES, Drawing, drawings_of, drawings_of_fit
from finetune.reporting.page import PageBoard, PageFigure, PageSection, render_page
from finetune.reporting.style import to_png
from finetune.reporting.triage import rank_suspects, write_suspects

PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy", "scikit-learn")
MAX_SUSPECT_ROWS = 500
TABLES = (
    *("index.html", "metrics.json", "per_class.csv", "per_label.csv", "per_range.csv"),
    *("predictions.csv", "suspects.csv"),
)


def write_report(
    folder: Path | str,
    evaluation: Judgement,
    details: ReportDetails | None = None,
    *,
    title: str = "Test report",
    **more: Any,
) -> Path:
    """Write the report folder and return its page.

    The folder is written beside and then renamed. The files of an older report of the same name are
    replaced, each as a whole; what else lies there stays.

    Args:
        folder: for example ``RUN/report``.
        details: what else to tell; its fields can also be given by name (``settings=...``).
        title: headline of the page.

    Examples:
        >>> answers = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]
        >>> found = finetune.evaluate([0, 1, 1, 0], answers, ["cat", "dog"])
        >>> finetune.write_report("report", found, title="Pets").name
        'index.html'
    """
    details = ReportDetails(**more) if details is None else details
    return write_section(folder, section_of(title, evaluation, details))


def write_section(folder: Path | str, section: PageSection) -> Path:
    """What :func:`write_report` writes, of a section that is known already."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as beside:
        _write_into(beside, section)
        written = {folder / path.relative_to(beside) for path in report_files(beside)}
    for path in set(report_files(folder)) - written:  # of an earlier test, not about this one
        path.unlink()
    return folder / "index.html"


def report_files(folder: Path) -> list[Path]:
    """The files of a report folder that are ours; what else lies there is its owner's alone."""
    names = [*TABLES, *(f"figures/{name}.png" for name in NAMES)]
    return [folder / name for name in names if (folder / name).is_file()]


def write_page(
    path: Path | str,
    evaluations: Mapping[str, tuple[Judgement, ReportDetails]],
    *,
    title: str = "Report",
    leaderboard: Leaderboard | None = None,
    columns: Mapping[str, Mapping[str, str | float]] | None = None,
) -> Path:
    """One page alone, of one evaluation or of several side by side.

    Args:
        path: the HTML file.
        evaluations: by name, each with what else is known.
        leaderboard: shown first, with ``columns`` ``{name: {column: value}}`` added to its table.
    """
    sections = [
        section_of(name, evaluation, details) for name, (evaluation, details) in evaluations.items()
    ]
    board = None if leaderboard is None else _page_board(leaderboard, columns or {})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_page(title, sections, board=board))
    return path


def describe_environment() -> dict[str, str]:
    """Versions that decide results, and the kind of machine; nothing about its owner."""
    return {
        "python": platform.python_version(),
        "finetune": own_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
    }


def draw_all(evaluation: Judgement, details: ReportDetails) -> list[PageFigure]:
    """Every figure that the data allows, in both themes."""
    drawings = (*drawings_of(evaluation, details), *drawings_of_fit(details))
    return [_drawn(drawing) for drawing in drawings]


def section_of(title: str, evaluation: Judgement, details: ReportDetails) -> PageSection:
    """All that a page says of one evaluation, figures drawn and suspects ranked."""
    if details.environment is None:
        details = replace(details, environment=describe_environment())
    return PageSection(
        title,
        evaluation,
        details,
        draw_all(evaluation, details),
        rank_suspects(evaluation, MAX_SUSPECT_ROWS, embeddings=details.embeddings),
    )


def _write_into(folder: Path, section: PageSection) -> None:
    evaluation = section.evaluation
    (folder / "figures").mkdir()
    for figure in section.figures:
        write_bytes(folder / "figures" / f"{figure.name}.png", figure.light)
    write_suspects(folder / "suspects.csv", section.suspects)
    name, parts = evaluation.parts
    write_parts(folder / f"{name}.csv", parts)
    write_predictions(folder / "predictions.csv", evaluation)
    metrics = {**evaluation.to_dict(), "answer": section.answer.to_dict()}
    text = json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(folder / "metrics.json", text + "\n")
    write_text(folder / "index.html", render_page(section.title, [section]))


def _page_board(
    leaderboard: Leaderboard, columns: Mapping[str, Mapping[str, str | float]]
) -> PageBoard:
    lead = next(iter(leaderboard.evaluations.values())).leading[0]
    caption = f"The {lead.name} on the common images with 95 % intervals."
    draw = partial(figures.leaderboard_figure, leaderboard.evaluations)
    return PageBoard(leaderboard, (_drawn(Drawing("leaderboard", caption, draw)),), columns)


def _drawn(drawing: Drawing) -> PageFigure:
    light, dark = (to_png(drawing.draw(theme=theme), dpi=150) for theme in ("light", "dark"))
    return PageFigure(
        drawing.name, drawing.caption, light, dark, drawing.place, drawing.wide, drawing.folded
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
