"""``finetune report``: write one HTML page about runs, checkpoints or predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands.folder_options import Accelerator, Root
from finetune.commands.guest import Where, each_of
from finetune.commands.outputs import (
    PAGES,
    TABLES,
    Output,
    PageFile,
    checked_output,
    default_output,
    wanted_output,
)
from finetune.commands.terminal import print_line
from finetune.commands.verb import Typed, verb
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.comparison import Leaderboard
    from finetune.reporting.sources import Source
    from finetune.runtime import Runtime

RUN_FILES = ("config.yaml", "metrics.json")  # a fit's folder, a test's folder


@verb
def report(
    sources: Where | Sequence[Where],
    *,
    output: PageFile = None,
    overwrite: bool = False,
    root: Root = None,
    title: str | None = None,
    folds: bool = False,
    suspects: Annotated[Where | None, Typed(metavar="FILE.csv")] = None,
    accelerator: Accelerator = "auto",
    quiet: bool = False,
) -> Path:
    """Write one HTML page about runs, checkpoints or predictions.

    Args:
        sources: run folders, .ckpt files or predictions .csv, side by side.
        output: the page to write; by default report.html, or the next free name.
        overwrite: replace what is there.
        root: folder of the images, if they have moved.
        title: headline of the page.
        folds: the sources are the folds of one cross-validation.
        suspects: also rank the labels that may be wrong, with the help of the images themselves.
        accelerator: where networks answer: auto, cpu, gpu, cuda or mps.
        quiet: print nothing.

    Returns:
        The page.

    Raises:
        UsageError: the same source twice, or an output that must not be written.
    """
    paths = each_of(sources)
    wanted = default_output("report.html", output, overwrite=overwrite)
    page = checked_page(wanted, paths, root, overwrite=overwrite)
    ranked = wanted_output(
        suspects,
        endings=TABLES,
        overwrite=overwrite,
        option="--suspects",
        inputs=paths,
        images=[root],
    )

    from finetune.reporting.answer import board_answer
    from finetune.reporting.report import write_page
    from finetune.reporting.sources import load_sources, merge_folds
    from finetune.runtime import Runtime

    runtime = Runtime.chosen(accelerator)
    found = load_sources(paths, root=None if root is None else Path(root))
    for each in filter(None, (page, ranked)):
        keep_off_sources(each, found)
    if folds:
        merged = merge_folds(found)
        found = {merged.name: merged}
    if ranked is not None:
        found = {name: with_embeddings(source, runtime) for name, source in found.items()}
        write_all_suspects(ranked, found)
    board = _leaderboard(found)
    with page.writing() as beside:
        write_page(
            beside,
            {
                source.title if len(found) == 1 else name: (source.evaluation, source.details)
                for name, source in found.items()
            },
            title=title or ", ".join(source.title for source in found.values()),
            leaderboard=board,
            columns={name: source.columns for name, source in found.items()},
        )
    for source in found.values():
        answer = source.answer
        told = f"\n{answer}" if len(found) == 1 else f" {answer.sentences[0]}"
        print(f"{source.title}:{told}")
        if source.evaluation.dominant is not None:
            print(source.evaluation.dominant)
    if board is not None:
        print(board_answer(board))
    print(f"report in {page.path}")
    return page.path


def checked_page(
    path: Where, sources: Sequence[Where], root: Where | None, *, overwrite: bool
) -> Output:
    """A page's place; in a run folder, an earlier page of ours is replaced without being asked."""
    return checked_output(
        path,
        endings=PAGES,
        overwrite=overwrite,
        inputs=sources,
        images=[root],
        is_ours=_is_page_of_a_run,
    )


def _is_page_of_a_run(page: Path) -> bool:
    from finetune.reporting.page import GENERATOR

    folders = page.absolute().parents[:2]
    if not any((each / name).is_file() for each in folders for name in RUN_FILES):
        return False
    with page.open("rb") as file:
        return GENERATOR.encode() in file.read(1000)


def keep_off_sources(output: Output, sources: Mapping[str, Source]) -> None:
    """Refuse a place among the images that the sources are about."""
    from finetune.training.checkpoints import read_checkpoint
    from finetune.training.fitted_splits import split_records

    weights = [source.weights for source in sources.values() if source.weights is not None]
    kept = [split_records(read_checkpoint(each, mmap=True).details) for each in weights]
    roots = [source.details.root for source in sources.values()]
    images = {path for source in sources.values() for path in source.evaluation.paths}
    folders = {os.path.dirname(path) for path in images if os.path.isabs(path)}
    output.keep_off(images=[*roots, *folders], fits=[fit for fits in kept for fit in fits])


def with_embeddings(source: Source, runtime: Runtime) -> Source:
    """The source with pooled features of its images, where a classifier's weights are known."""
    if source.weights is None:
        return source
    from finetune.reporting.embeddings import embed
    from finetune.training.classifier import ImageClassifier

    classifier = runtime.place(ImageClassifier.from_checkpoint(source.weights))
    embeddings = embed(classifier, source.evaluation.paths, root=source.details.root)
    return replace(source, details=replace(source.details, embeddings=embeddings))


def write_all_suspects(output: Output, sources: dict[str, Source]) -> None:
    """One list of labels to look at, from the only source."""
    from finetune.reporting.triage import rank_suspects, write_suspects

    if len(sources) > 1:
        raise UsageError(
            f"Expected one source with --suspects, found {len(sources)}; add --folds if they are "
            "the folds of one cross-validation."
        )
    (source,) = sources.values()
    suspects = rank_suspects(source.evaluation, embeddings=source.details.embeddings)
    with output.writing() as beside:
        write_suspects(beside, suspects)
    for suspect in [s for s in suspects[:10] if s.suspected]:
        instead = f"perhaps {suspect.suggested}" if suspect.suggested else "unlike all others"
        print_line(f"look at {suspect.path}: labelled {suspect.label}, {instead}")
    print(f"suspects in {output.path}")


def _leaderboard(sources: dict[str, Source]) -> Leaderboard | None:
    """A comparison, if there are several sources that answered the same images."""
    from finetune.evaluation.comparison import compare_all
    from finetune.reporting.sources import comparable, in_common

    if len(sources) < 2:
        return None
    evaluations = comparable(sources)
    if not in_common(evaluations):
        print("no comparison on the page: there is no image that all of them have answered")
        return None
    return compare_all(evaluations)
