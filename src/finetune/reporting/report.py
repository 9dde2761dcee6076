"""A report folder: the page, the figures and the tables of one evaluation.

report/
├── index.html        everything at a glance, self-contained
├── metrics.json      the figures, with their intervals
├── per_class.csv
├── predictions.csv   path, label, prediction, confidence, p:<class>, ...
├── suspects.csv      images whose label should be looked at
└── figures/*.png
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune.distribution import own_version
from finetune.evaluation.comparison import Leaderboard
from finetune.evaluation.result import Evaluation
from finetune.files import atomic_folder, write_bytes, write_text
from finetune.reporting import curves as curve_figures
from finetune.reporting import figures, galleries
from finetune.reporting.csv_files import write_per_class, write_predictions
from finetune.reporting.curves import Curve
from finetune.reporting.figures import NUMBERS_IN_CELLS
from finetune.reporting.page import PageBoard, PageFigure, PageSection, render_page
from finetune.reporting.style import MANY, ThemeName, to_png
from finetune.reporting.triage import rank_suspects, write_suspects

PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy", "scikit-learn")
MAX_SUSPECT_ROWS = 500
TABLES = ("index.html", "metrics.json", "per_class.csv", "predictions.csv", "suspects.csv")
FIGURES = (
    *("confusion", "confusion_normalised", "per_class", "reliability", "coverage_risk"),
    *("class_balance", "learning_curves", "learning_rate", "embedding"),
    *("top_losses", "confident_errors"),
)

Draw = Callable[[ThemeName], Figure]


class DataFinding(Protocol):
    """What is wrong with one file, and what to do about it."""

    @property
    def path(self) -> object:
        """The file."""

    @property
    def problem(self) -> str:
        """What is wrong."""

    @property
    def remedy(self) -> str:
        """What to do."""


@dataclass(frozen=True, eq=False)
class ReportDetails:
    """What a report can tell beside the evaluation; all of it may be missing.

    Attributes:
        root: folder that relative paths of images start from, for thumbnails.
        learning_curves: ``{"train/loss": [(epoch, value), ...], "lr-AdamW": ...}``.
        class_counts: images by split and class, for the class balance.
        embeddings: pooled features of the images ``(N, D)``, for a map and for label triage.
        settings, environment: nested mappings of plain values.
    """

    root: Path | None = None
    learning_curves: Mapping[str, Curve] | None = None
    class_counts: Mapping[str, Mapping[str, int]] | None = None
    embeddings: NDArray[np.floating] | None = None
    settings: Mapping[str, Any] | None = None
    findings: Sequence[DataFinding] | None = None
    environment: Mapping[str, Any] | None = None


def write_report(
    folder: Path | str,
    evaluation: Evaluation,
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
    """
    details = ReportDetails(**more) if details is None else details
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as beside:
        _write_into(beside, evaluation, details, title)
        written = {folder / path.relative_to(beside) for path in report_files(beside)}
    for path in set(report_files(folder)) - written:  # of an earlier test, not about this one
        path.unlink()
    return folder / "index.html"


def report_files(folder: Path) -> list[Path]:
    """The files of a report folder that are ours; what else lies there is its owner's alone."""
    names = [*TABLES, *(f"figures/{name}.png" for name in FIGURES)]
    return [folder / name for name in names if (folder / name).is_file()]


def write_page(
    path: Path | str,
    evaluations: Mapping[str, tuple[Evaluation, ReportDetails]],
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
        _page_section(name, evaluation, details, draw_all(evaluation, details))
        for name, (evaluation, details) in evaluations.items()
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


def draw_all(evaluation: Evaluation, details: ReportDetails) -> list[PageFigure]:
    """Every figure that the data allows, in both themes."""
    return [
        _drawn(name, caption, draw, wide=_is_wide(name, evaluation))
        for name, caption, draw in _drawings(evaluation, details)
    ]


def _is_wide(name: str, evaluation: Evaluation) -> bool:
    """Whether a figure needs the page's whole width to be read."""
    many = len(evaluation.class_names) > NUMBERS_IN_CELLS
    return name == "learning_curves" or (many and name.startswith("confusion"))


def _write_into(folder: Path, evaluation: Evaluation, details: ReportDetails, title: str) -> None:
    drawn = draw_all(evaluation, details)
    (folder / "figures").mkdir()
    for figure in drawn:
        write_bytes(folder / "figures" / f"{figure.name}.png", figure.light)
    for name, draw in (
        ("top_losses", galleries.top_losses_figure),
        ("confident_errors", galleries.confident_errors_figure),
    ):
        content = to_png(draw(evaluation, root=details.root))
        write_bytes(folder / "figures" / f"{name}.png", content)
    section = _page_section(title, evaluation, details, drawn)
    write_suspects(folder / "suspects.csv", section.suspects)
    write_per_class(folder / "per_class.csv", evaluation.per_class)
    write_predictions(folder / "predictions.csv", evaluation)
    metrics = json.dumps(evaluation.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
    write_text(folder / "metrics.json", metrics + "\n")
    write_text(folder / "index.html", render_page(title, [section]))


def _page_section(
    title: str, evaluation: Evaluation, details: ReportDetails, drawn: Sequence[PageFigure]
) -> PageSection:
    return PageSection(
        title=title,
        evaluation=evaluation,
        figures=drawn,
        root=details.root,
        suspects=rank_suspects(evaluation, MAX_SUSPECT_ROWS, embeddings=details.embeddings),
        settings=details.settings,
        findings=details.findings,
        environment=describe_environment() if details.environment is None else details.environment,
    )


def _page_board(
    leaderboard: Leaderboard, columns: Mapping[str, Mapping[str, str | float]]
) -> PageBoard:
    def draw(theme: ThemeName) -> Figure:
        return figures.leaderboard_figure(leaderboard.evaluations, theme=theme)

    figure = _drawn("leaderboard", "Accuracy on the common images with 95 % intervals.", draw)
    return PageBoard(leaderboard, (figure,), columns)


def _drawings(evaluation: Evaluation, details: ReportDetails) -> list[tuple[str, str, Draw]]:
    drawings: list[tuple[str, str, Draw]] = []

    def add(name: str, caption: str, draw: Callable[..., Figure], *args: Any, **kw: Any) -> None:
        drawings.append((name, caption, lambda theme: draw(*args, theme=theme, **kw)))

    add("confusion", "Confusion matrix in counts.", figures.confusion_figure, evaluation)
    if len(evaluation.class_names) <= MANY:
        caption = "Confusion matrix, each row adds up to 100 %; the class table has its diagonal."
        add("confusion_normalised", caption, figures.confusion_figure, evaluation, normalise=True)
    caption = "Recall with its interval and precision by class; the class table has the numbers."
    add("per_class", caption, figures.per_class_figure, evaluation)
    caption = "Reliability diagram: bars on the dashed line mean that confidence can be trusted."
    add("reliability", caption, figures.reliability_figure, evaluation)
    caption = "The error rate that is left when only the surest answers are kept."
    add("coverage_risk", caption, figures.coverage_risk_figure, evaluation)
    counts = details.class_counts or {"judged": {s.name: s.support for s in evaluation.per_class}}
    add("class_balance", "Images of each class.", figures.class_balance_figure, counts)
    learned = details.learning_curves
    if learned:
        caption = "Learning curves of the fit."
        add("learning_curves", caption, curve_figures.learning_curves_figure, learned)
    if learned and curve_figures.has_learning_rates(learned):
        caption = "Learning rates over the fit."
        add("learning_rate", caption, curve_figures.learning_rate_figure, learned)
    if details.embeddings is not None and len(details.embeddings) > 1:
        map_of = (details.embeddings, evaluation.labels, evaluation.class_names)
        caption = "Map of the images by their features; close means alike to the network."
        add("embedding", caption, galleries.embedding_figure, *map_of)
    return drawings


def _drawn(name: str, caption: str, draw: Draw, *, wide: bool = False) -> PageFigure:
    return PageFigure(
        name, caption, to_png(draw("light"), dpi=110), to_png(draw("dark"), dpi=110), wide
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
