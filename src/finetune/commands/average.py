"""``finetune average``: the weights of several checkpoints into one of the same size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.commands.guest import Where, as_guest
from finetune.commands.held_out_images import (
    add_data_options,
    build_datamodule,
    warnings_in_one_line,
)
from finetune.commands.outputs import CHECKPOINTS, add_output, wanted_output
from finetune.commands.parsing import Parser

if TYPE_CHECKING:
    from finetune.combining.averaged_checkpoint import Soup


def main(arguments: list[str]) -> int:
    """Average, judge where there are images, write, and say what it brought."""
    options = _parser().parse_args(arguments)
    with warnings_in_one_line():
        _average(options)
    return 0


def average(
    checkpoints: Where | Sequence[Where],
    data: Where | None = None,
    *,
    output: Where | None = None,
    quiet: bool = False,
    **options: Any,
) -> Soup:
    """Average the weights of fits of one backbone, as ``finetune average`` does.

    Args:
        checkpoints: files, run folders, or groups of them.
        data: the folder of images that the fits were made with; what they held out judges.
        output: the ``.ckpt`` file to write; without one nothing is written.
        quiet: print nothing.
        options: of the command by name, such as ``method="greedy"``, ``coefficients=[0.3, 0.7]``,
            ``overwrite=True``.

    Raises:
        CheckpointMismatchError: checkpoints that cannot be averaged, with the reason.
        UsageError: settings that contradict each other, or an output that must not be written.
    """
    given = {"checkpoints": checkpoints, "root": data, "output": output, **options}
    chosen = _parser().options_from(**given)
    with as_guest(quiet=quiet):
        return _average(chosen)


def _average(options: argparse.Namespace) -> Soup:
    output = wanted_output(
        options.output,
        endings=CHECKPOINTS,
        overwrite=options.overwrite,
        inputs=[*options.checkpoints, options.manifest],
        images=[options.root],
    )

    from finetune.combining.ingredients import survey
    from finetune.combining.soups import average_checkpoints
    from finetune.commands.multi_fit import with_members
    from finetune.commands.trainer import quiet_libraries

    quiet_libraries()
    ingredients = survey(with_members(options.checkpoints))
    records = [record for each in ingredients for record in each.fitted_on]
    if output is not None:
        output.keep_off(fits=records)
    datamodule = None
    if options.root is not None:
        datamodule = build_datamodule(options, records, ingredients[0].class_names)
    soup = average_checkpoints(
        [each.path for each in ingredients],
        method=options.method,
        coefficients=options.coefficients,
        datamodule=datamodule,
        metric=options.metric,
        batchnorm=options.batchnorm,
        share=options.share,
        accelerator=options.accelerator,
    )
    names = [str(each.path) for each in ingredients]
    for line in describe_soup(soup, names, options.metric):
        print(line)
    if output is not None:
        with output.writing() as beside:
            soup.save(beside)
        print(f"average written to {output.path}")
    return soup


def describe_soup(soup: Soup, names: list[str], metric: str) -> list[str]:
    """A row a member, one for the average, and whether it beats the best member."""
    width = max(map(len, names))
    rows = []
    for index, (name, coefficient) in enumerate(zip(names, soup.coefficients, strict=True)):
        figures = ""
        if soup.member_scores:
            score = soup.member_scores[index]
            figures = f"  accuracy {score.accuracy:.4f}  nll {score.nll:.4f}"
        rows.append(f"{name:<{width}}  coefficient {coefficient:.3f}{figures}")
    for coefficient, score in soup.curve:
        rows.append(f"at {coefficient:.2f}  accuracy {score.accuracy:.4f}  nll {score.nll:.4f}")
    if soup.score is None:
        return rows
    rows.append(
        f"{'average':<{width}}  batch norm {soup.batchnorm}"
        f"  accuracy {soup.score.accuracy:.4f}  nll {soup.score.nll:.4f}"
    )
    best = min(soup.member_scores, key=lambda score: score.sort_key)
    verdict = "better than" if soup.score.loss < best.loss else "equal to"
    if soup.score.loss > best.loss:
        verdict = "worse than"
    rows.append(f"the average is {verdict} the best member by held-out {metric}")
    return rows


def _parser() -> Parser:
    parser = Parser(
        prog="finetune average",
        description="Average the weights of fits of one backbone, best from one common head. "
        "Different backbones go into `finetune ensemble`.",
    )
    parser.add_argument(
        "checkpoints", nargs="+", help="checkpoint files, run folders, or groups of them"
    )
    parser.add_argument(
        "--method",
        choices=["uniform", "weighted", "greedy", "interpolate"],
        default="uniform",
        help="greedy keeps what does not lower the held-out score; interpolate walks from the "
        "first to the second checkpoint",
    )
    parser.add_argument(
        "--coefficients",
        nargs="+",
        type=float,
        metavar="C",
        help="one a checkpoint for weighted; the share of the second for interpolate",
    )
    parser.add_argument(
        "--metric", choices=["nll", "accuracy", "brier"], default="nll", help="what decides"
    )
    parser.add_argument(
        "--batchnorm",
        choices=["auto", "average", "update"],
        default="auto",
        help="running statistics: averaged, estimated afresh, or whichever answers better",
    )
    add_output(parser, "the file", metavar="FILE.ckpt")
    add_data_options(parser)
    return parser
