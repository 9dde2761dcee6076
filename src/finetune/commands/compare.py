"""``finetune compare``: a leaderboard of runs that says which differences are real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.outputs import add_overwrite
from finetune.commands.parsing import Parser
from finetune.commands.report import checked_page, keep_off_sources
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.comparison import Leaderboard


# Columns of what runs alone know, and their format.
EXTRA = {"parameters": ",", "MB on disk": ".1f", "fit minutes": ".2f", "ms an image": ".1f"}


def main(arguments: list[str]) -> int:
    """Print the leaderboard and every pair's verdict; write a page with ``--output``."""
    options = _parser().parse_args(arguments)
    if len(options.sources) < 2:
        raise UsageError("Expected at least two runs to compare, found one; name another.")
    output = None if options.output is None else checked_page(options.output, options)

    from finetune.evaluation.comparison import compare_all
    from finetune.reporting.sources import comparable, load_sources

    sources = load_sources(options.sources, root=options.root)
    if output is not None:
        keep_off_sources(output, sources)
    board = compare_all(comparable(sources))
    columns = {name: source.columns for name, source in sources.items()}
    print("\n".join(leaderboard_lines(board, columns)))
    if output is not None:
        from finetune.reporting.report import write_page

        sections = {
            name: (sources[name].evaluation, sources[name].details) for name in board.evaluations
        }
        with output.writing() as beside:
            write_page(beside, sections, title="Comparison", leaderboard=board, columns=columns)
        print(f"\ncomparison in {output.path}")
    return 0


def leaderboard_lines(
    board: Leaderboard, columns: Mapping[str, Mapping[str, str | float]]
) -> list[str]:
    """The leaderboard as aligned text, then one verdict a pair, the real differences first."""
    best = next(iter(board.evaluations))
    images = len(board.evaluations[best].labels)
    header = ["", "accuracy", "95 % interval", "macro F1", "NLL", *EXTRA]
    rows = [header]
    for name, e in board.evaluations.items():
        low, high = e.accuracy_wilson
        known = columns.get(name, {})
        rows.append(
            [
                name + (" *" if name in board.as_good_as_the_best else ""),
                f"{100 * e.accuracy:.1f} %",
                f"[{100 * low:.1f}, {100 * high:.1f}]",
                f"{100 * e.macro_f1:.1f} %",
                f"{e.nll:.4f}",
                *(format(known[t], form) if t in known else "" for t, form in EXTRA.items()),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    left_out = f"; {board.left_out} others are left out" if board.left_out else ""
    pairs = sorted(board.pairs, key=lambda pair: pair.adjusted_p_value)
    dominant = [f"{name}: {e.dominant}" for name, e in board.evaluations.items() if e.dominant]
    return [
        *table,
        *dominant,
        "",
        f"on the {images} images that all have in common{left_out}; "
        "* not distinguishable from the best",
        "",
        *(f"{pair.verdict()} (p = {pair.adjusted_p_value:.3g})" for pair in pairs),
    ]


def _parser() -> Parser:
    parser = Parser(prog="finetune compare", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", help="two or more run folders, .ckpt files or predictions .csv"
    )
    parser.add_argument("--output", metavar="FILE.html", help="also write a page")
    add_overwrite(parser)
    parser.add_argument("--root", type=Path, help="folder of the images, if they have moved")
    return parser
