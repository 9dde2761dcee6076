"""``finetune ensemble``: the answers of several checkpoints in one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.commands.guest import Where, as_guest
from finetune.commands.held_out_images import (
    add_data_options,
    build_held_out,
    warnings_in_one_line,
)
from finetune.commands.outputs import (
    CHECKPOINTS,
    FIGURES,
    Output,
    add_output,
    wanted_output,
)
from finetune.commands.parsing import Parser
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.combining.held_out import HeldOut
    from finetune.combining.member_outputs import DataModules


def main(arguments: list[str]) -> int:
    """Combine, select and calibrate where asked, write, and show what each member is worth."""
    options = _parser().parse_args(arguments)
    with warnings_in_one_line():
        _combine(options)
    return 0


def ensemble(
    checkpoints: Where | Sequence[Where],
    data: Where | None = None,
    *,
    output: Where | None = None,
    quiet: bool = False,
    **options: Any,
) -> Ensemble:
    """Combine the answers of checkpoints of any backbones, as ``finetune ensemble`` does.

    Args:
        checkpoints: files, run folders, groups of them, other ensembles and saved predictions.
        data: the folder of images that the fits were made with; what they held out selects and
            calibrates.
        output: the ``.ckpt`` file to write; without one nothing is written.
        quiet: print nothing.
        options: of the command by name, such as ``select="greedy"``, ``calibrate=True``,
            ``pooling="geometric"``, ``overwrite=True``.

    Raises:
        CheckpointMismatchError: members with different classes.
        UsageError: settings that contradict each other, or an output that must not be written.
    """
    given = {"checkpoints": checkpoints, "root": data, "output": output, **options}
    chosen = _parser().options_from(**given)
    with as_guest(quiet=quiet):
        return _combine(chosen)


def _combine(options: argparse.Namespace) -> Ensemble:
    output, figure = checked_outputs(options)
    calibrates = _checked_calibration(options, figure)

    from finetune.combining.ensemble import Ensemble
    from finetune.commands.bootstrap_heads import heads_on_one_backbone
    from finetune.commands.multi_fit import with_members
    from finetune.commands.trainer import quiet_libraries
    from finetune.runtime import Runtime

    quiet_libraries()
    runtime = Runtime.chosen(options.accelerator)
    if options.heads is not None:
        whole = heads_on_one_backbone(options, runtime)
    else:
        whole = Ensemble.from_checkpoints(
            with_members(options.checkpoints),
            coefficients=options.coefficients,
            pooling=options.pooling,
        )
    for each in filter(None, (output, figure)):
        each.keep_off(fits=whole.fitted_on)
    chosen = whole
    if options.root is not None:
        datamodule = build_held_out(options, runtime.place(whole))
        chosen = select_and_show(whole, datamodule, options)
        if figure is not None:
            write_diversity(figure, whole, whole.held_out(datamodule))
        if calibrates:
            chosen = calibrate_and_show(chosen, datamodule, options)
    if output is not None:
        with output.writing() as beside:
            chosen.save(beside)
        print(f"ensemble of {len(chosen.parts)} written to {output.path}")
    return chosen


def _checked_calibration(options: argparse.Namespace, figure: Output | None) -> bool:
    """Whether something is to be calibrated; refuses what needs images where there are none."""
    calibrates = options.calibrate or options.reject_risk is not None
    calibrates = calibrates or options.conformal is not None
    if figure is not None and options.root is None:
        raise UsageError(
            f"Expected held-out images beside --figure {figure.path}, found none; "
            "add --data.root DIR."
        )
    if options.root is None and (options.select != "all" or calibrates):
        raise UsageError(
            "Expected held-out images to select or calibrate on, found none; "
            "add --data.root DIR, or take --select all."
        )
    return bool(calibrates)


def checked_outputs(options: argparse.Namespace) -> tuple[Output | None, Output | None]:
    """The ensemble's place, and the figure's where one is asked for."""
    rule: dict[str, Any] = {
        "overwrite": options.overwrite,
        "inputs": [*options.checkpoints, options.manifest],
        "images": [options.root],
    }
    output = wanted_output(options.output, endings=CHECKPOINTS, **rule)
    return output, wanted_output(options.figure, endings=FIGURES, option="--figure", **rule)


def select_and_show(
    whole: Ensemble, datamodule: DataModules, options: argparse.Namespace
) -> Ensemble:
    """The members that help, and what each is worth on held-out images."""
    chosen = whole.select(
        datamodule,
        method=options.select,
        metric=options.metric,
        max_members=options.max_members,
        min_gain=options.min_gain,
        share=options.share,
        seed=options.seed,
    )
    from finetune.commands.member_worth import describe_ensemble, honest_accuracy

    held_out = whole.held_out(datamodule)
    for line in describe_ensemble(whole, chosen, held_out, chosen.held_out(datamodule)):
        print(line)
    print(honest_accuracy(chosen, held_out, options))
    return chosen


def calibrate_and_show(
    chosen: Ensemble, datamodule: DataModules, options: argparse.Namespace
) -> Ensemble:
    """The ensemble with a temperature, and with the rules that were asked for."""
    from finetune.commands.calibrate import describe_calibration

    calibrated = chosen.calibrate(
        datamodule,
        reject_risk=options.reject_risk,
        conformal=options.conformal,
        share=options.share,
        allow_reuse=options.allow_reuse,
    )
    for line in describe_calibration(calibrated.calibration):
        print(line)
    return calibrated


def write_diversity(figure: Output, whole: Ensemble, held_out: HeldOut) -> None:
    """The members' pairs as an image: who gives other answers, and who errs together."""
    from finetune.combining.diversity import diversity
    from finetune.commands.member_worth import row_names
    from finetune.reporting.diversity import diversity_figure
    from finetune.reporting.style import save_png

    found = diversity(*whole.task.rows(held_out.member_logits, held_out.labels))
    with figure.writing() as beside:
        save_png(diversity_figure(found, row_names(whole, held_out)), beside)
    print(f"diversity of the members in {figure.path}")


def _parser() -> Parser:
    parser = Parser(
        prog="finetune ensemble",
        description="Combine checkpoints of any backbones and sizes, other ensembles and saved "
        "predictions. Each image is decoded once for all of them.",
    )
    parser.add_argument("checkpoints", nargs="+", help="files, run folders, or groups of them")
    parser.add_argument(
        "--select",
        choices=["all", "greedy", "learned"],
        default="all",
        help="which members stay, by held-out images",
    )
    parser.add_argument(
        "--pooling",
        choices=["mean", "geometric", "vote"],
        default="mean",
        help="mean of probabilities, of logits (geometric), or majority vote",
    )
    parser.add_argument("--coefficients", nargs="+", type=float, metavar="C", help="one a member")
    parser.add_argument(
        "--metric", choices=["nll", "accuracy", "brier"], default="nll", help="what greedy lowers"
    )
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="of one checkpoint: N final layers on its backbone, each fitted on a bootstrap sample",
    )
    parser.add_argument(
        "--max-members",
        type=int,
        help="keep at most so many; the folds of one recipe count as one",
    )
    parser.add_argument(
        "--min-gain",
        type=float,
        default=0.0,
        help="least rise of the metric, on leaving out a member of average time, that keeps it",
    )
    parser.add_argument(
        "--figure", metavar="FILE.png", help="draw how much the members differ, pair by pair"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the guards against overfitting")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature as well")
    parser.add_argument("--reject-risk", type=float, metavar="R", help="as for calibrate")
    parser.add_argument("--conformal", type=float, metavar="A", help="as for calibrate")
    add_output(parser, "the file", metavar="FILE.ckpt")
    add_data_options(parser)
    return parser
