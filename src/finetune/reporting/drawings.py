"""Which figures a page has: those of the task's evaluation, then those of the fit.

Another task registers its own: ``@drawings_of.register`` in one more file of figures, which
:mod:`finetune.reporting.report` imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, singledispatch
from typing import NamedTuple

from matplotlib.figure import Figure

from finetune.evaluation.judgement import Judgement
from finetune.evaluation.label_evaluation import LabelEvaluation
from finetune.evaluation.number_evaluation import NumberEvaluation
from finetune.evaluation.result import Evaluation
from finetune.reporting import curves, figures, galleries, label_figures, number_figures
from finetune.reporting.details import ReportDetails
from finetune.reporting.figures import NUMBERS_IN_CELLS
from finetune.reporting.style import MANY

# Drawn with images in them, as files beside a page, whose own galleries can be filtered.
GALLERIES = {
    "top_losses": galleries.top_losses_figure,
    "confident_errors": galleries.confident_errors_figure,
}
LABEL_AXES = ("probability", "share with the label", "answers")
NAMES = (
    *("confusion", "confusion_normalised", "per_class", "reliability", "coverage_risk"),
    *("per_label", "most_missed", "co_occurrence", "predicted", "residuals"),
    *("class_balance", "learning_curves", "learning_rate", "embedding"),
    *GALLERIES,
)


class Drawing(NamedTuple):
    """A figure that can be drawn, ``draw(theme=...)``; a wide one needs the page's whole width."""

    name: str
    caption: str
    draw: Callable[..., Figure]
    wide: bool = False


@singledispatch
def drawings_of(evaluation: Judgement, details: ReportDetails) -> Iterator[Drawing]:
    """What is drawn of an evaluation."""
    raise NotImplementedError(type(evaluation).__name__)


@drawings_of.register
def _(evaluation: Evaluation, details: ReportDetails) -> Iterator[Drawing]:
    wide = len(evaluation.class_names) > NUMBERS_IN_CELLS
    confusion = partial(figures.confusion_figure, evaluation)
    yield Drawing("confusion", "Confusion matrix in counts.", confusion, wide)
    if len(evaluation.class_names) <= MANY:
        caption = "Confusion matrix, each row adds up to 100 %; the class table has its diagonal."
        yield Drawing("confusion_normalised", caption, partial(confusion, normalise=True), wide)
    caption = "Recall with its interval and precision by class; the class table has the numbers."
    yield Drawing("per_class", caption, partial(figures.per_class_figure, evaluation))
    caption = "Reliability diagram: bars on the dashed line mean that confidence can be trusted."
    yield Drawing("reliability", caption, partial(figures.reliability_figure, evaluation))
    caption = "The error rate that is left when only the surest answers are kept."
    yield Drawing("coverage_risk", caption, partial(figures.coverage_risk_figure, evaluation))
    counts = details.class_counts or {"judged": {s.name: s.support for s in evaluation.per_class}}
    balance = partial(figures.class_balance_figure, counts)
    yield Drawing("class_balance", "Images of each class.", balance)
    if details.embeddings is not None and len(details.embeddings) > 1:
        places = (details.embeddings, evaluation.labels, evaluation.class_names)
        caption = "Map of the images by their features; close means alike to the network."
        yield Drawing("embedding", caption, partial(galleries.embedding_figure, *places))


@drawings_of.register
def _(evaluation: LabelEvaluation, details: ReportDetails) -> Iterator[Drawing]:
    caption = "Average precision with its interval, and F1, by label, the worst first."
    yield Drawing("per_label", caption, partial(label_figures.per_label_figure, evaluation))
    caption = "How often each label was found, missed and named where it is not; most missed first."
    yield Drawing("most_missed", caption, partial(label_figures.most_missed_figure, evaluation))
    caption = "Of the images with the label of the row, the share that also has the column's."
    together = partial(label_figures.co_occurrence_figure, evaluation)
    yield Drawing("co_occurrence", caption, together, wide=True)
    caption = "Reliability diagram over all answers: how often a label so probable is there."
    said = partial(figures.reliability_figure, evaluation, axes=LABEL_AXES)
    yield Drawing("reliability", caption, said)
    support = zip(evaluation.class_names, evaluation.per_label, strict=True)
    counts = details.class_counts or {"judged": {name: s.support for name, s in support}}
    balance = partial(figures.class_balance_figure, counts, what="label")
    yield Drawing("class_balance", "Images of each label.", balance)


@drawings_of.register
def _(evaluation: NumberEvaluation, details: ReportDetails) -> Iterator[Drawing]:
    caption = "Each answer over the true number; right answers lie on the dashed line."
    yield Drawing("predicted", caption, partial(number_figures.predicted_figure, evaluation))
    caption = "How far each answer is off, over the answer; points above zero are too high."
    yield Drawing("residuals", caption, partial(number_figures.residuals_figure, evaluation))


def drawings_of_fit(details: ReportDetails) -> Iterator[Drawing]:
    """What is drawn of how it was learned, whatever was."""
    learned = details.learning_curves
    if learned:
        figure = partial(curves.learning_curves_figure, learned)
        yield Drawing("learning_curves", "Learning curves of the fit.", figure, wide=True)
    if learned and curves.has_learning_rates(learned):
        figure = partial(curves.learning_rate_figure, learned)
        yield Drawing("learning_rate", "Learning rates over the fit.", figure)
