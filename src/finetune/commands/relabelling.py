"""``finetune report --relabel``: a page on which a person looks at the labels that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.commands.outputs import Output
    from finetune.reporting.sources import Source
    from finetune.reporting.triage import LabelSuspect


def write_relabelling(output: Output, source: Source, suspects: Sequence[LabelSuspect]) -> None:
    """Write the page of the credible suspects; none of them, no page.

    Args:
        output: where it goes.
        source: what was judged.
        suspects: of its labels, ranked.

    Raises:
        UsageError: several labels an image, or numbers.
        DataError: the images are not where their paths lead.
    """
    from finetune.data.image_bytes import is_there
    from finetune.evaluation.result import Evaluation
    from finetune.reporting.label_page import render_label_page, to_relabel
    from finetune.reporting.thumbnails import locate
    from finetune.reporting.triage import credible
    from finetune.tasks.one_class import only_one_class

    evaluation = source.evaluation
    only_one_class(evaluation.task, "--relabel", instead="go through the table of --suspects")
    assert isinstance(evaluation, Evaluation)
    names, shown = evaluation.class_names, []
    suspected = credible(evaluation, suspects)
    for suspect in suspected:
        place = locate(suspect.path, source.details.root)
        if is_there(place):
            answers = evaluation.probabilities[suspect.index].tolist()
            shown.append(to_relabel(suspect, dict(zip(names, answers, strict=True)), str(place)))
    if suspected and not shown:
        raise DataError(
            f"Expected the images of {source.name} to look at, found none where their paths lead; "
            "name their folder by --data.root."
        )
    if not shown:
        print("no label is suspected to be wrong: no page to look at them on")
        return
    with output.writing() as beside:
        page = render_label_page(shown, names, relabels=True)
        beside.write_text(page, encoding="utf-8")
    print(f"labels to look at in {output.path}: keys 1 to 9, then save")
