"""One self-contained HTML page: no network, no server, nothing that a class name could break.

Every value is escaped by the template engine; a content security policy allows the page's own
style and script by their hashes and nothing else, so that text which looks like a script stays
text even if escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from finetune.evaluation.comparison import Leaderboard, compare_classes
from finetune.evaluation.result import Evaluation, Interval
from finetune.reporting.galleries import most_confident_errors
from finetune.reporting.thumbnails import thumbnail_uris
from finetune.reporting.triage import LabelSuspect

MAX_ERRORS = 400  # cards in a gallery; predictions.csv has them all
MAX_SUSPECTS = 24
IMAGE_BUDGET = 2_500_000  # bytes of thumbnails on a page, as base64
GENERATOR = '<meta name="generator" content="finetune">'  # by it a page is known to be ours
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A drawn figure: the light PNG, the dark PNG, and what it shows, in words."""

    name: str
    caption: str
    light: bytes = field(repr=False)
    dark: bytes = field(repr=False)
    wide: bool = False


@dataclass(frozen=True, eq=False)
class PageSection:
    """What the page shows of one evaluation.

    Attributes:
        root: folder that relative paths of images start from.
        suspects: of wrong labels, ranked; the suspected ones among the first are shown.
        settings, environment: nested mappings of plain values.
        findings: objects with ``path``, ``problem`` and ``remedy``.
    """

    title: str
    evaluation: Evaluation
    figures: Sequence[PageFigure] = ()
    root: Path | None = None
    suspects: Sequence[LabelSuspect] = ()
    settings: Mapping[str, Any] | None = None
    findings: Sequence[Any] | None = None
    environment: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PageBoard:
    """A leaderboard with whatever else is known of its rows, ``{name: {column: value}}``."""

    leaderboard: Leaderboard
    figures: Sequence[PageFigure] = ()
    details: Mapping[str, Mapping[str, str | float]] = field(default_factory=dict)


def render_page(
    title: str, sections: Sequence[PageSection], *, board: PageBoard | None = None
) -> str:
    """The whole page as text; thumbnails of all sections share one budget."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    budget = IMAGE_BUDGET // max(1, len(sections))
    return environment.get_template("page.html.j2").render(
        title=title,
        policy=content_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        drawn=_drawn,
        sections=[_section(section, budget) for section in sections],
        board=None if board is None else _board(board),
    )


def percentage(value: float, digits: int = 1) -> str:
    """``0.914`` as ``91.4 %``."""
    return f"{100 * value:.{digits}f} %"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as rows: ``{"data": {"seed": 0}}`` gives ``("data.seed", "0")``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def content_policy(css: str, script: str) -> str:
    """What a page with this style and this script may do: show its own images, and no more."""

    def source(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(css)}; "
        f"script-src {source(script)}; base-uri 'none'; form-action 'none'"
    )


def _drawn(figure: PageFigure) -> Markup:
    template = (
        '<figure class="{kind}"><picture>'
        '<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        '<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )
    return Markup(template).format(
        kind="wide" if figure.wide else "narrow",
        dark=_png_uri(figure.dark),
        light=_png_uri(figure.light),
        caption=figure.caption,
    )


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _section(section: PageSection, budget: int) -> dict[str, Any]:
    evaluation = section.evaluation
    suspects = [s for s in section.suspects[:MAX_SUSPECTS] if s.suspected]
    chosen = most_confident_errors(evaluation, MAX_ERRORS).tolist()
    wanted = [*(s.path for s in suspects), *(evaluation.paths[i] for i in chosen)]
    uris = thumbnail_uris(wanted, root=section.root, budget=budget)
    errors = [_error(evaluation, index, uris, section.root) for index in chosen]
    return {
        "title": section.title,
        "evaluation": evaluation,
        "scores": _scores(evaluation),
        "notes": _notes(evaluation),
        "figures": section.figures,
        "confused": evaluation.confused_pairs(),
        "errors": errors,
        "n_errors": int((evaluation.predictions != evaluation.labels).sum()),
        "error_labels": _choices(errors, "label"),
        "error_predictions": _choices(errors, "prediction"),
        "suspects": [(s, _shown_path(s.path, section.root), uris.get(s.path)) for s in suspects],
        "findings": section.findings,
        "settings": list(flatten(section.settings or {})),
        "environment": list(flatten(section.environment or {})),
    }


def _error(
    evaluation: Evaluation, index: int, uris: Mapping[str, str], root: Path | None
) -> dict[str, Any]:
    label, prediction = int(evaluation.labels[index]), int(evaluation.predictions[index])
    path = evaluation.paths[index]
    return {
        "path": _shown_path(path, root),
        "uri": uris.get(path),
        "label_index": label,
        "label": evaluation.class_names[label],
        "prediction_index": prediction,
        "prediction": evaluation.class_names[prediction],
        "confidence": float(evaluation.confidences[index]),
    }


def _choices(errors: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[int, str]]:
    return sorted({(error[f"{kind}_index"], error[kind]) for error in errors})


def _scores(evaluation: Evaluation) -> list[dict[str, str]]:
    e = evaluation
    scores = [
        _score("accuracy", percentage(e.accuracy), e.accuracy_wilson),
        _score("balanced accuracy", percentage(e.balanced_accuracy), e.balanced_accuracy_interval),
        _score("macro F1", percentage(e.macro_f1), e.macro_f1_interval),
        _score("mean AUROC", "–" if e.macro_auroc != e.macro_auroc else f"{e.macro_auroc:.4f}"),
        _score("negative log-likelihood", f"{e.nll:.4f}"),
        _score("Brier score", f"{e.brier:.4f}"),
        _score("calibration error", percentage(e.calibration_error)),
        _score("risk-coverage area", f"{e.aurc:.4f}"),
        *(_score(f"top-{k} accuracy", percentage(share)) for k, share in e.top_k.items()),
    ]
    if e.fold_accuracies:
        folds = e.to_dict()["folds"]
        spread = folds["standard_deviation"]
        value = percentage(folds["mean"]) + (f" ± {percentage(spread)}" if spread else "")
        scores.append(_score(f"mean of {len(e.fold_accuracies)} folds", value))
    return scores


def _score(name: str, value: str, interval: Interval | None = None) -> dict[str, str]:
    # A bootstrap of right answers alone has no width; that is no certainty, so it is not shown.
    known = interval is not None and interval[0] < interval[1]
    ends = (
        ""
        if interval is None or not known
        else f"[{percentage(interval[0])}, {percentage(interval[1])}]"
    )
    return {"name": name, "value": value, "interval": ends}


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [] if evaluation.dominant is None else [f"Of the likelihood: {evaluation.dominant}."]
    few = evaluation.classes_with_few_images
    if not few:
        return notes
    names = ", ".join(few[:10]) + (f" and {len(few) - 10} more" if len(few) > 10 else "")
    return [*notes, f"Fewer than five test images, so figures of their own mean little: {names}."]


def _board(board: PageBoard) -> dict[str, Any]:
    leaderboard = board.leaderboard
    first = next(iter(leaderboard.evaluations.values()))
    extra = list(dict.fromkeys(column for row in board.details.values() for column in row))
    numbers = ["accuracy", "from", "to", "macro F1", "NLL", "calibration error"]
    columns = [
        {"title": "name", "kind": "text"},
        *({"title": title, "kind": "number"} for title in numbers),
        {"title": "against the best", "kind": "text"},
        *({"title": title, "kind": "number"} for title in extra),
    ]
    rows = [
        [*_board_row(name, e, leaderboard), *_extra_cells(board.details.get(name, {}), extra)]
        for name, e in leaderboard.evaluations.items()
    ]
    pair = [*leaderboard.evaluations.items()]
    return {
        "classes": compare_classes(pair[0], pair[1]) if len(pair) == 2 else {},
        "images": len(first.labels),
        "left_out": leaderboard.left_out,
        "columns": columns,
        "rows": rows,
        "pairs": leaderboard.pairs,
        "figures": board.figures,
    }


def _board_row(
    name: str, evaluation: Evaluation, leaderboard: Leaderboard
) -> list[tuple[str | float, str]]:
    low, high = evaluation.accuracy_wilson
    shares = [evaluation.accuracy, low, high, evaluation.macro_f1]
    verdict = "not distinguishable" if name in leaderboard.as_good_as_the_best else "worse"
    if name == next(iter(leaderboard.evaluations)):
        verdict = "best"
    return [
        (name, name),
        *((share, percentage(share)) for share in shares),
        (evaluation.nll, f"{evaluation.nll:.4f}"),
        (evaluation.calibration_error, percentage(evaluation.calibration_error)),
        (verdict, verdict),
    ]


def _extra_cells(
    details: Mapping[str, str | float], columns: Sequence[str]
) -> list[tuple[str | float, str]]:
    values = [details.get(column, "") for column in columns]
    return [(value, _readable(value)) for value in values]


def _readable(value: str | float) -> str:
    match value:
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
        case _:
            return value


def _shown_path(path: str, root: Path | None) -> str:
    """The name of an image without the folder that all images lie in."""
    below = root is not None and Path(path).is_relative_to(root)
    return str(Path(path).relative_to(root)) if below and root is not None else path
