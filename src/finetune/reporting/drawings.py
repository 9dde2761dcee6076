"""Which figures a page has: those of the task's evaluation, then those of the fit.

Another task registers its own: ``@drawings_of.register`` in one more file of figures, which
:mod:`finetune.reporting.report` imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, singledispatch
from typing import Literal, NamedTuple

from matplotlib.figure import Figure

from finetune.evaluation.judgement import Judgement
from finetune.evaluation.label_evaluation import LabelEvaluation
from finetune.evaluation.number_evaluation import NumberEvaluation
from finetune.evaluation.result import Evaluation
from finetune.reporting import curves, embedding_map, figures, label_figures, number_figures
from finetune.reporting.details import ReportDetails
from finetune.reporting.figures import ROWS

LABEL_AXES = ("probability", "share with the label", "answers")
NAMES = (
    *("per_class", "confusion", "reliability", "coverage_risk", "predicted"),
    *("per_label", "most_missed", "co_occurrence", "class_balance", "embedding"),
    *("ranges", "residuals"),
    *("learning_loss", "learning_figure", "learning_curves", "learning_rate"),
)
# The question that a figure answers.
Place = Literal["judged", "parts", "errors", "trust", "data", "fit"]


class Drawing(NamedTuple):
    """A figure that can be drawn, ``draw(theme=...)``.

    Those of a place stand two in a row, at one height, so they are drawn in one size. A wide one
    needs the whole row; a folded one is only looked at by those who ask for more.
    """

    name: str
    caption: str
    draw: Callable[..., Figure]
    place: Place = "parts"
    wide: bool = False
    folded: bool = False


@singledispatch
def drawings_of(evaluation: Judgement, details: ReportDetails) -> Iterator[Drawing]:
    """What is drawn of an evaluation."""
    raise NotImplementedError(type(evaluation).__name__)


@drawings_of.register
def _(evaluation: Evaluation, details: ReportDetails) -> Iterator[Drawing]:
    caption = "Recall with its interval, and precision, by class, the worst first."
    yield Drawing("per_class", caption, partial(figures.per_class_figure, evaluation))
    many = len(evaluation.class_names) > ROWS
    caption = "Images by label and prediction: off the diagonal are the errors."
    confusion = partial(figures.confusion_figure, evaluation)
    yield Drawing("confusion", caption, confusion, "parts", wide=many)
    counts = details.class_counts or {"judged": {s.name: s.support for s in evaluation.per_class}}
    even = all(len(set(of_side.values())) == 1 for of_side in counts.values())
    yield _balance(counts, "class", folded=even)
    caption = "Bars on the dashed line mean that confidence can be trusted."
    yield Drawing("reliability", caption, partial(figures.reliability_figure, evaluation), "trust")
    caption = "The error rate that is left when only the surest answers are kept."
    kept = partial(figures.coverage_risk_figure, evaluation)
    yield Drawing("coverage_risk", caption, kept, "trust")
    if details.embeddings is not None and len(details.embeddings) > 1:
        places = (details.embeddings, evaluation.labels, evaluation.class_names)
        caption = "Map of the images by their features; close means alike to the network."
        drawn = partial(embedding_map.embedding_figure, *places)
        yield Drawing("embedding", caption, drawn, "data", folded=True)


@drawings_of.register
def _(evaluation: LabelEvaluation, details: ReportDetails) -> Iterator[Drawing]:
    caption = "Average precision with its interval, and F1, by label, the worst first."
    yield Drawing("per_label", caption, partial(label_figures.per_label_figure, evaluation))
    caption = "How often each label was found, missed and named where it is not; most missed first."
    yield Drawing("most_missed", caption, partial(label_figures.most_missed_figure, evaluation))
    support = zip(evaluation.class_names, evaluation.per_label, strict=True)
    counts = details.class_counts or {"judged": {name: s.support for name, s in support}}
    yield _balance(counts, "label")
    caption = "Of the images with the label of the row, the share that also has the column's."
    together = partial(label_figures.co_occurrence_figure, evaluation)
    yield Drawing("co_occurrence", caption, together, "errors", wide=True, folded=True)
    caption = "Over all answers: how often a label so probable is there."
    said = partial(figures.reliability_figure, evaluation, axes=LABEL_AXES)
    yield Drawing("reliability", caption, said, "trust")


def _balance(
    counts: Mapping[str, Mapping[str, int]], what: str, *, folded: bool = False
) -> Drawing:
    balance = partial(figures.class_balance_figure, counts, what=what)
    return Drawing("class_balance", f"Images of each {what}.", balance, "judged", folded=folded)


@drawings_of.register
def _(evaluation: NumberEvaluation, details: ReportDetails) -> Iterator[Drawing]:
    caption = "Each answer over the true number; right answers lie on the dashed line."
    answered = partial(number_figures.predicted_figure, evaluation)
    yield Drawing("predicted", caption, answered, "judged")
    caption = "The mean absolute error of each part of the range, and by how much it is too high."
    yield Drawing("ranges", caption, partial(number_figures.ranges_figure, evaluation))
    caption = "How far each answer is off, over the answer; points above zero are too high."
    off = partial(number_figures.residuals_figure, evaluation)
    yield Drawing("residuals", caption, off, "trust")


def drawings_of_fit(details: ReportDetails) -> Iterator[Drawing]:
    """What is drawn of how it was learned, whatever was: two curves, and the rest for who asks."""
    learned = details.learning_curves
    if not learned:
        return
    panels = curves.panels_of(learned)
    for name, title in zip(("learning_loss", "learning_figure"), panels, strict=False):
        panel = partial(curves.panel_figure, title, panels[title])
        yield Drawing(name, f"The {title} by epoch.", panel, "fit")
    rest = dict(list(panels.items())[2:])
    if rest:
        figure = partial(curves.learning_curves_figure, rest)
        caption = "All other curves of the fit."
        yield Drawing("learning_curves", caption, figure, "fit", wide=True, folded=True)
    if curves.has_learning_rates(learned):
        figure = partial(curves.learning_rate_figure, learned)
        yield Drawing("learning_rate", "Learning rates over the fit.", figure, "fit", folded=True)
