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
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from finetune.evaluation.clusters import clusters
from finetune.evaluation.comparison import Leaderboard, compare_classes
from finetune.evaluation.judgement import Judgement, readable
from finetune.reporting.answer import Answer, answer_of, board_answer, least_sure
from finetune.reporting.details import ReportDetails
from finetune.reporting.thumbnails import thumbnail_uris
from finetune.reporting.triage import LabelSuspect, credible

MAX_ERRORS = 400  # cards in a gallery; predictions.csv has them all
MAX_SUSPECTS = 24
MAX_UNSURE = 6
FIRST_ERRORS = 14  # the others behind a fold
IMAGE_BUDGET = 2_500_000  # bytes of thumbnails on a page, as base64
GENERATOR = '<meta name="generator" content="finetune">'  # by it a page is known to be ours
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A drawn figure: the light PNG, the dark PNG, and what it shows, in words.

    ``place``, ``wide`` and ``folded`` are those of :class:`finetune.reporting.drawings.Drawing`.
    """

    name: str
    caption: str
    light: bytes = field(repr=False)
    dark: bytes = field(repr=False)
    place: str = ""
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True, eq=False)
class PageSection:
    """What the page shows of one evaluation.

    Attributes:
        suspects: of wrong labels, ranked; the suspected ones among the first are shown.
    """

    title: str
    evaluation: Judgement
    details: ReportDetails = field(default_factory=ReportDetails)
    figures: Sequence[PageFigure] = ()
    suspects: Sequence[LabelSuspect] = ()

    @cached_property
    def answer(self) -> Answer:
        """What the page opens with."""
        return answer_of(self.evaluation, self.details, self.suspects)


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
    budget = IMAGE_BUDGET // max(1, len(sections))
    return render(
        "page.html.j2",
        title,
        sections=[_section(section, budget) for section in sections],
        board=None if board is None else _board(board),
    )


def render(template: str, title: str, **values: Any) -> str:
    """A page of a template that fills :file:`frame.html.j2`, which loads nothing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        title=title,
        policy=content_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        drawn=_drawn,
        coded=_coded,
        readable=readable,
        **values,
    )


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


def _coded(text: str) -> Markup:
    """What stands between backticks as code."""
    parts = enumerate(text.split("`"))
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if place % 2 else part for place, part in parts)


def _drawn(figure: PageFigure) -> Markup:
    template = (
        '<figure class="{kind}"><picture>'
        '<source srcset="{dark}" media="screen and (prefers-color-scheme: dark)">'
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
    evaluation, details = section.evaluation, section.details
    suspected = credible(evaluation, section.suspects)
    suspects = suspected[:MAX_SUSPECTS]
    wrong, unsure = evaluation.errors().tolist(), least_sure(evaluation)
    chosen, doubtful = wrong[:MAX_ERRORS], unsure[:MAX_UNSURE]
    paths = [evaluation.paths[i] for i in (*doubtful, *chosen)]
    wanted = [*(s.path for s in suspects), *paths]
    uris = thumbnail_uris(wanted, root=details.root, budget=budget)

    def card(path: str) -> tuple[str, str | None]:
        return _shown_path(path, details.root), uris.get(path)

    def cards(indexes: Sequence[int]) -> list[tuple[Any, ...]]:
        return [(evaluation.shown(i), *card(evaluation.paths[i])) for i in indexes]

    errors = cards(chosen)
    return {
        "title": section.title,
        "answer": section.answer,
        "images": len(evaluation.paths),
        "stage": details.stage,
        "evaluation": evaluation,
        "sides": _sides(details.class_counts or {}),
        "figures": [each for each in section.figures if not each.folded],
        "folded": [each for each in section.figures if each.folded],
        "errors": errors[:FIRST_ERRORS],
        "more_errors": errors[FIRST_ERRORS:],
        "n_errors": len(wrong),
        "error_labels": sorted({part for shown, *_ in errors for part in shown.of_label}),
        "error_answers": sorted({part for shown, *_ in errors for part in shown.of_answer}),
        "unsure": cards(doubtful),
        "n_unsure": len(unsure),
        "n_unproved": sum(s.suspected for s in section.suspects) - len(suspected),
        "suspects": [(s, *card(s.path)) for s in suspects],
        "n_suspects": len(suspected),
        "findings": details.findings,
        "settings": list(flatten(details.settings or {})),
        "environment": list(flatten(details.environment or {})),
        "commands": details.commands,
    }


def _sides(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, int, str]]:
    """Of each side of the split its images, and how many its smallest and its largest class has."""
    told = []
    for side, of_class in counts.items():
        least, *_, most = sorted(of_class.items(), key=lambda item: item[1]) * 2
        ends = f"{least[1]} ({least[0]}) to {most[1]} ({most[0]})"
        told.append((side, sum(of_class.values()), ends if least[1] < most[1] else f"{most[1]}"))
    return told


def _board(board: PageBoard) -> dict[str, Any]:
    leaderboard = board.leaderboard
    first = next(iter(leaderboard.evaluations.values()))
    extra = list(dict.fromkeys(column for row in board.details.values() for column in row))
    lead, *others = first.leading
    columns = [
        {"title": "name", "kind": "text"},
        *({"title": t, "kind": "number"} for t in (lead.name, "from", "to")),
        *({"title": score.name, "kind": "number"} for score in others),
        {"title": "against the best", "kind": "text"},
        *({"title": title, "kind": "number"} for title in extra),
    ]
    rows = [
        [*_board_row(name, e, leaderboard), *_extra_cells(board.details.get(name, {}), extra)]
        for name, e in leaderboard.evaluations.items()
    ]
    pair = [*leaderboard.evaluations.items()]
    drawn = lead.name != "accuracy" or any(clusters(e.groups) is not None for _, e in pair)
    return {
        "answer": board_answer(leaderboard),
        "classes": compare_classes(pair[0], pair[1]) if len(pair) == 2 else {},
        "images": len(first.paths),
        "test": "a paired bootstrap" if drawn else "McNemar's exact test",
        "left_out": leaderboard.left_out,
        "columns": columns,
        "rows": rows,
        "pairs": leaderboard.pairs,
        "figures": board.figures,
    }


def _board_row(
    name: str, evaluation: Judgement, leaderboard: Leaderboard
) -> list[tuple[str | float, str]]:
    lead, *others = evaluation.leading
    verdict = "not distinguishable" if name in leaderboard.as_good_as_the_best else "worse"
    if name == next(iter(leaderboard.evaluations)):
        verdict = "best"
    return [
        (name, name),
        (lead.value, lead.shown),
        *((end, readable(end, lead.kind)) for end in lead.interval or (lead.value, lead.value)),
        *((score.value, score.shown) for score in others),
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
