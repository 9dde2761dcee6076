"""``finetune average``: the weights of several checkpoints into one of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Unpack

from finetune.commands.guest import Where, each_of
from finetune.commands.held_out_images import OF_FITS, HeldOut, build_datamodule
from finetune.commands.outputs import CHECKPOINTS, CheckpointFile, wanted_output
from finetune.commands.verb import Typed, verb
from finetune.spec.choices import Averaging, BatchNormOfAverage, Metric

if TYPE_CHECKING:
    from finetune.combining.averaged_checkpoint import Soup


@verb
def average(
    checkpoints: Where | Sequence[Where],
    data: Annotated[Where | None, OF_FITS] = None,
    *,
    method: Averaging = "uniform",
    coefficients: Annotated[Sequence[float] | None, Typed(metavar="C")] = None,
    metric: Metric = "nll",
    batchnorm: BatchNormOfAverage = "auto",
    output: CheckpointFile = None,
    overwrite: bool = False,
    quiet: bool = False,
    **held_out: Unpack[HeldOut],
) -> Soup:
    """Average the weights of fits of one backbone, best from one common head.

    Different backbones go into `finetune ensemble`.

    Args:
        checkpoints: checkpoint files, run folders, or groups of them.
        data: the folder of images that the fits were made with; what they held out judges.
        method: greedy keeps what does not lower the held-out score; interpolate walks from the
            first to the second checkpoint.
        coefficients: one a checkpoint for weighted; the share of the second for interpolate.
        metric: what decides.
        batchnorm: running statistics: averaged, estimated afresh, or whichever answers better.
        output: the file to write.
        overwrite: replace what is there.
        quiet: print nothing.
        held_out: how the images are read, and which of them judge.

    Raises:
        CheckpointMismatchError: checkpoints that cannot be averaged, with the reason.
        UsageError: settings that contradict each other, or an output that must not be written.
    """
    paths = each_of(checkpoints)
    written = wanted_output(
        output,
        endings=CHECKPOINTS,
        overwrite=overwrite,
        inputs=[*paths, held_out.get("manifest")],
        images=[data],
    )

    from finetune.combining.ingredients import survey
    from finetune.combining.soups import average_checkpoints
    from finetune.commands.multi_fit import with_members
    from finetune.commands.trainer import quiet_libraries

    quiet_libraries()
    ingredients = survey(with_members(paths))
    records = [record for each in ingredients for record in each.fitted_on]
    if written is not None:
        written.keep_off(fits=records)
    images = None
    if data is not None:
        images = build_datamodule(data, held_out, records, ingredients[0].checkpoint.class_names)
    soup = average_checkpoints(
        [each.name for each in ingredients],
        method=method,
        coefficients=coefficients,
        datamodule=images,
        metric=metric,
        batchnorm=batchnorm,
        share=held_out.get("share", "half"),
        accelerator=held_out.get("accelerator", "auto"),
    )
    print(*describe_soup(soup, [each.name for each in ingredients], metric), sep="\n")
    if written is not None:
        with written.writing() as beside:
            soup.save(beside)
        print(f"average written to {written.path}")
    return soup


def describe_soup(soup: Soup, names: list[str], metric: str) -> list[str]:
    """A row a member, one for the average, and whether it beats the best member."""
    from finetune.tasks.known import TASKS

    width = max(map(len, names))
    rows = []
    for index, (name, coefficient) in enumerate(zip(names, soup.coefficients, strict=True)):
        figures = ""
        if soup.member_scores:
            figures = f"  {soup.member_scores[index].said}"
        rows.append(f"{name:<{width}}  coefficient {coefficient:.3f}{figures}")
    for coefficient, score in soup.curve:
        rows.append(f"at {coefficient:.2f}  {score.said}")
    if soup.score is None:
        return rows
    rows.append(f"{'average':<{width}}  batch norm {soup.batchnorm}  {soup.score.said}")
    best = min(soup.member_scores, key=lambda score: score.sort_key)
    verdict = "better than" if soup.score.loss < best.loss else "equal to"
    if soup.score.loss > best.loss:
        verdict = "worse than"
    task = TASKS[soup.entry["task"]]
    word = metric if task.has_choices else task.deciding
    rows.append(
        f"the average is {verdict} the best member by held-out {word} on {soup.score.images} images"
    )
    return rows
