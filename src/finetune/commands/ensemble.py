"""``finetune ensemble``: the answers of several checkpoints in one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.held_out import (
    add_data_options,
    build_held_out,
    warnings_in_one_line,
)
from finetune.commands.outputs import (
    CHECKPOINTS,
    FIGURES,
    Output,
    add_output,
    checked_output,
)
from finetune.commands.parsing import Parser
from finetune.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.combining.ensemble import Ensemble
    from finetune.combining.held_out import HeldOut
    from finetune.evaluation.held_out_loss import Metric


def main(arguments: list[str]) -> int:
    """Combine, select and calibrate where asked, write, and show what each member is worth."""
    options = _parser().parse_args(arguments)
    output, figure = checked_outputs(options)
    calibrates = options.calibrate or options.reject_risk is not None
    calibrates = calibrates or options.conformal is not None
    if figure is not None and options.root is None:
        raise UsageError(
            f"Expected held-out images beside --figure {figure.path}, found none; "
            "add --data.root DIR."
        )
    if options.root is None and (options.select != "all" or calibrates):
        raise UsageError(
            "Expected held-out pictures to select or calibrate on, found none; "
            "add --data.root DIR, or take --select all."
        )

    from finetune.combining.ensemble import Ensemble
    from finetune.commands.many import with_members
    from finetune.commands.many_heads import heads_on_one_backbone
    from finetune.commands.trainer import quiet_libraries
    from finetune.runtime import Runtime

    quiet_libraries()
    runtime = Runtime.chosen(options.accelerator)
    with warnings_in_one_line():
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
    with output.writing() as beside:
        chosen.save(beside)
    print(f"ensemble of {len(chosen.parts)} written to {output.path}")
    return 0


def checked_outputs(options: argparse.Namespace) -> tuple[Output, Output | None]:
    """The ensemble's place, and the figure's where one is asked for."""
    rule: dict[str, Any] = {
        "overwrite": options.overwrite,
        "inputs": [*options.checkpoints, options.manifest],
        "images": [options.root],
    }
    output = checked_output(options.output, endings=CHECKPOINTS, **rule)
    if options.figure is None:
        return output, None
    return output, checked_output(options.figure, endings=FIGURES, option="--figure", **rule)


def select_and_show(whole: Ensemble, datamodule: Any, options: argparse.Namespace) -> Ensemble:
    """The members that help, and what each is worth on held-out pictures."""
    chosen = whole.select(
        datamodule,
        method=options.select,
        metric=options.metric,
        max_members=options.max_members,
        min_gain=options.min_gain,
        share=options.share,
        seed=options.seed,
    )
    held_out = whole.held_out(datamodule)
    for line in describe_ensemble(whole, chosen, held_out, chosen.held_out(datamodule)):
        print(line)
    print(honest_accuracy(chosen, held_out, options))
    return chosen


def calibrate_and_show(chosen: Ensemble, datamodule: Any, options: argparse.Namespace) -> Ensemble:
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
    """The members' pairs as a picture: who gives other answers, and who errs together."""
    from finetune.combining.diversity import diversity
    from finetune.reporting.diversity import diversity_figure
    from finetune.reporting.style import save_png

    found = diversity(held_out.member_logits, held_out.labels)
    with figure.writing() as beside:
        save_png(diversity_figure(found, row_names(whole, held_out)), beside)
    print(f"diversity of the members in {figure.path}")


def describe_ensemble(
    whole: Ensemble, chosen: Ensemble, held_out: HeldOut, of_chosen: HeldOut
) -> list[str]:
    """A row a member or recipe, one for the ensemble, its diversity, and whether it is best.

    Args:
        whole, chosen: before and after the selection.
        held_out, of_chosen: what they answered to the same pictures.
    """
    from finetune.combining.diversity import diversity
    from finetune.evaluation.held_out_loss import held_out_loss

    rows = picking_rows(chosen, held_out)
    labels, members = held_out.labels[rows], held_out.member_logits[:, rows]
    kept = [0.0] * len(whole.parts)
    for position, value in zip(
        _positions(whole.member_names, chosen.member_names), chosen.coefficients, strict=True
    ):
        kept[position] = value
    names = row_names(whole, held_out)
    width = max(len("ensemble"), *map(len, names))

    def figures(logits: Tensor, votes: bool = False) -> str:
        accuracy = f"accuracy {1 - held_out_loss(logits, labels, 'accuracy'):.4f}"
        # Shares of votes are no probabilities: their likelihood says nothing.
        return accuracy if votes else f"{accuracy}  nll {held_out_loss(logits, labels, 'nll'):.4f}"

    lines = [
        f"{name:<{width}}  {figures(member)}  coefficient {value:.3f}"
        f"  {1000 * seconds / max(len(held_out.ids), 1):.1f} ms a picture"
        for name, member, value, seconds in zip(
            names, members, held_out.of_rows(kept), held_out.seconds, strict=True
        )
    ]
    pooled = chosen.pool_held_out(of_chosen, rows)
    metric: Metric = "accuracy" if chosen.pooling == "vote" else "nll"
    lines.append(f"{'ensemble':<{width}}  {figures(pooled, votes=metric == 'accuracy')}")
    answers = of_chosen.member_logits[:, rows]
    found = diversity(
        answers,
        labels,
        of_chosen.of_rows(chosen.coefficients),
        pooling=chosen.pooling,
        metric=metric,
    )
    pairs = max(len(answers) * (len(answers) - 1), 1)
    lines.append(
        f"disagreement of two members {float(found.disagreement.sum()) / pairs:.3f}; "
        f"one of them right {found.oracle_accuracy:.4f}; "
        f"pooling gains {found.ambiguity:.4f} {metric}"
    )
    best = min(held_out_loss(member, labels, metric) for member in members)
    gain = best - held_out_loss(pooled, labels, metric)
    verdict = "better than" if gain > 1e-9 else "equal to" if gain > -1e-9 else "worse than"
    lines.append(f"the ensemble is {verdict} the best member by held-out {metric} ({gain:+.4f})")
    return lines


def honest_accuracy(chosen: Ensemble, held_out: HeldOut, options: argparse.Namespace) -> str:
    """The ensemble's accuracy with its interval, on answers that no selection has profited from."""
    from finetune.combining.selection import choose_coefficients, cross_validated_answers
    from finetune.evaluation.intervals import wilson_interval

    rows = picking_rows(chosen, held_out)
    labels = held_out.labels[rows]
    if options.select == "all":
        kind, answers = "held-out", chosen.pool_held_out(held_out, rows)
    elif len(rows) < 2:
        return "too few held-out pictures to say how good the ensemble is"
    else:
        kind = "cross-validated"
        answers = cross_validated_answers(
            held_out.member_logits[:, rows],
            labels,
            lambda members, truth: choose_coefficients(
                members,
                truth,
                method=options.select,
                metric=options.metric,
                pooling=chosen.pooling,
                max_members=options.max_members,
            ),
            pooling=chosen.pooling,
            seed=options.seed,
        )
    right = int((answers.argmax(dim=-1) == labels).sum())
    low, high = wilson_interval(right, len(labels))
    source = " out-of-fold answers" if held_out.is_out_of_fold else " pictures"
    return (
        f"{kind} accuracy of the ensemble {right / len(labels):.4f} "
        f"(95 % interval {low:.3f} to {high:.3f}, {len(labels)}{source})"
    )


def picking_rows(chosen: Ensemble, held_out: HeldOut) -> list[int]:
    """The pictures that picked; all of them where none has, for then all show the members."""
    picked = set(chosen.roles.get("pick", held_out.ids))
    rows = [row for row, identity in enumerate(held_out.ids) if identity in picked]
    return rows or list(range(len(held_out.ids)))


def row_names(whole: Ensemble, held_out: HeldOut) -> list[str]:
    """The members' names; of several folds the group's, or the first one's."""
    names = []
    for column in held_out.columns or [(index,) for index in range(len(whole.parts))]:
        name = whole.member_names[column[0]]
        run = Path(name).parent.parent
        if len(column) > 1:
            name = f"{run.parent if run.name else name} ({len(column)} folds)"
        names.append(name)
    return names


def _positions(names: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Where the chosen members stand among all, also when one file was given twice."""
    positions: list[int] = []
    for name in chosen:
        positions.append(
            next(i for i, each in enumerate(names) if each == name and i not in positions)
        )
    return positions


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="finetune ensemble",
        description="Combine checkpoints of any backbones and sizes, other ensembles and saved "
        "predictions. Each picture is decoded once for all of them.",
    )
    parser.add_argument("checkpoints", nargs="+", help="files, run folders, or groups of them")
    parser.add_argument(
        "--select",
        choices=["all", "greedy", "learned"],
        default="all",
        help="which members stay, by held-out pictures",
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
