"""``finetune compare``: a leaderboard of runs that says which differences are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.folder_options import Root
from finetune.commands.guest import Where, each_of
from finetune.commands.outputs import PageFile
from finetune.commands.report import checked_page, keep_off_sources
from finetune.commands.terminal import aligned
from finetune.commands.verb import verb
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.comparison import Leaderboard

# Columns of what runs alone know, and their format.
EXTRA = {"parameters": ",", "MB on disk": ".1f", "fit minutes": ".2f", "ms an image": ".1f"}


@verb
def compare(
    sources: Sequence[Where],
    *,
    output: PageFile = None,
    overwrite: bool = False,
    root: Root = None,
    quiet: bool = False,
) -> Leaderboard:
    """A leaderboard of runs that says which differences are real.

    Args:
        sources: two or more run folders, .ckpt files or predictions .csv.
        output: also write a page.
        overwrite: replace what is there.
        root: folder of the images, if they have moved.
        quiet: print nothing.

    Raises:
        UsageError: fewer than two, no image in common, or an output that must not be written.
    """
    paths = each_of(sources)
    if len(paths) < 2:
        raise UsageError("Expected at least two runs to compare, found one; name another.")
    page = None if output is None else checked_page(output, paths, root, overwrite=overwrite)

    from finetune.evaluation.comparison import compare_all
    from finetune.reporting.sources import comparable, load_sources

    found = load_sources(paths, root=None if root is None else Path(root))
    if page is not None:
        keep_off_sources(page, found)
    board = compare_all(comparable(found))
    columns = {name: source.columns for name, source in found.items()}
    print("\n".join(leaderboard_lines(board, columns)))
    if page is not None:
        from finetune.reporting.report import write_page

        sections = {
            name: (found[name].evaluation, found[name].details) for name in board.evaluations
        }
        with page.writing() as beside:
            write_page(beside, sections, title="Comparison", leaderboard=board, columns=columns)
        print(f"\ncomparison in {page.path}")
    return board


def leaderboard_lines(
    board: Leaderboard, columns: Mapping[str, Mapping[str, str | float]]
) -> list[str]:
    """The leaderboard as aligned text, then one verdict a pair, the real differences first."""
    best = next(iter(board.evaluations))
    images = len(board.evaluations[best].paths)
    lead, *others = board.evaluations[best].leading
    rows = [["", lead.name, "95 % interval", *(score.name for score in others), *EXTRA]]
    for name, e in board.evaluations.items():
        lead, *others = e.leading
        known = columns.get(name, {})
        rows.append(
            [
                name + (" *" if name in board.as_good_as_the_best else ""),
                lead.shown,
                lead.shown_interval,
                *(score.shown for score in others),
                *(format(known[t], form) if t in known else "" for t, form in EXTRA.items()),
            ]
        )
    left_out = f"; {board.left_out} others are left out" if board.left_out else ""
    pairs = sorted(board.pairs, key=lambda pair: pair.adjusted_p_value)
    dominant = [f"{name}: {e.dominant}" for name, e in board.evaluations.items() if e.dominant]
    return [
        *aligned(rows),
        *dominant,
        "",
        f"on the {images} images that all have in common{left_out}; "
        "* not distinguishable from the best",
        "",
        *(f"{pair.verdict()} (p = {pair.adjusted_p_value:.3g})" for pair in pairs),
    ]
