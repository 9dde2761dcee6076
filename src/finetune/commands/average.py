"""``finetune average``: the weights of several checkpoints into one of the same size."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finetune.commands.held_out import (
    add_data_options,
    build_datamodule,
    warnings_in_one_line,
)
from finetune.commands.outputs import CHECKPOINTS, add_output, checked_output
from finetune.commands.parsing import Parser

if TYPE_CHECKING:
    from finetune.combining.soups import Soup


def main(arguments: list[str]) -> int:
    """Average, judge where there are pictures, write, and say what it brought."""
    options = _parser().parse_args(arguments)
    output = checked_output(
        options.output,
        endings=CHECKPOINTS,
        overwrite=options.overwrite,
        inputs=[*options.checkpoints, options.manifest],
        images=[options.root],
    )

    from finetune.combining.ingredients import survey
    from finetune.combining.soups import average_checkpoints
    from finetune.commands.many import with_members
    from finetune.commands.trainer import quiet_libraries

    quiet_libraries()
    with warnings_in_one_line():
        ingredients = survey(with_members(options.checkpoints))
        records = [record for each in ingredients for record in each.fitted_on]
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
    with output.writing() as beside:
        soup.save(beside)
    print(f"average written to {output.path}")
    return 0


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


def _parser() -> argparse.ArgumentParser:
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
