"""``finetune report``: write one HTML page about runs, checkpoints or predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.parsing import Parser
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.comparison import Leaderboard
    from finetune.reporting.sources import Source


def main(arguments: list[str]) -> int:
    """One page about everything given, side by side or as the folds of one cross-validation."""
    options = _parser().parse_args(arguments)
    output = Path(options.output)
    check_page_name(output)

    from finetune.reporting.report import write_page
    from finetune.reporting.sources import load_sources, merge_folds

    sources = load_sources(options.sources, root=options.root)
    if options.folds:
        merged = merge_folds(sources)
        sources = {merged.name: merged}
    if options.suspects is not None:
        sources = {name: with_embeddings(source) for name, source in sources.items()}
        write_all_suspects(options.suspects, sources)
    write_page(
        output,
        {
            source.title if len(sources) == 1 else name: (source.evaluation, source.details)
            for name, source in sources.items()
        },
        title=options.title or ", ".join(source.title for source in sources.values()),
        leaderboard=_leaderboard(sources),
        columns={name: source.columns for name, source in sources.items()},
    )
    for source in sources.values():
        e = source.evaluation
        low, high = e.accuracy_wilson
        print(
            f"{source.title}: accuracy {e.accuracy:.3f} [{low:.3f}, {high:.3f}] "
            f"on {len(e.labels)} images"
        )
    print(f"report in {output}")
    return 0


def check_page_name(output: Path) -> None:
    """Refuse a name that no browser would open, before any work is done."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"Expected --output to end in .html, found {output.name!r}; rename it.")


def with_embeddings(source: Source) -> Source:
    """The source with pooled features of its images, where a classifier's weights are known."""
    if source.weights is None:
        return source
    from finetune.reporting.embeddings import embed
    from finetune.training.classifier import ImageClassifier

    classifier = ImageClassifier.from_checkpoint(source.weights)
    embeddings = embed(classifier, source.evaluation.paths, root=source.details.root)
    return replace(source, details=replace(source.details, embeddings=embeddings))


def write_all_suspects(path: Path, sources: dict[str, Source]) -> None:
    """One list of labels to look at, from the only source."""
    from finetune.reporting.triage import rank_suspects, write_suspects

    if len(sources) > 1:
        raise UsageError(
            f"Expected one source with --suspects, found {len(sources)}; add --folds if they are "
            "the folds of one cross-validation."
        )
    (source,) = sources.values()
    suspects = rank_suspects(source.evaluation, embeddings=source.details.embeddings)
    write_suspects(path, suspects)
    for suspect in [s for s in suspects[:10] if s.suspected]:
        instead = f"perhaps {suspect.suggested}" if suspect.suggested else "unlike all others"
        print(f"look at {suspect.path}: labelled {suspect.label}, {instead}")
    print(f"suspects in {path}")


def _leaderboard(sources: dict[str, Source]) -> Leaderboard | None:
    """A comparison, if there are several sources that answered the same images."""
    from finetune.evaluation.comparison import compare_all

    first, *others = (set(source.evaluation.paths) for source in sources.values())
    if not others or not first.intersection(*others):
        return None
    return compare_all({name: source.evaluation for name, source in sources.items()})


def _parser() -> Parser:
    parser = Parser(prog="finetune report", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", help="run folders, .ckpt files or predictions .csv, side by side"
    )
    parser.add_argument("--output", default="report.html", help="the page to write")
    parser.add_argument("--root", type=Path, help="folder of the images, if they have moved")
    parser.add_argument("--title", help="headline of the page")
    parser.add_argument(
        "--folds", action="store_true", help="the sources are the folds of one cross-validation"
    )
    parser.add_argument(
        "--suspects",
        type=Path,
        metavar="CSV",
        help="also rank the labels that may be wrong, with the help of the images themselves",
    )
    return parser
