"""``finetune calibrate``: temperature, reject threshold and prediction sets into a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.guest import Where, as_guest
from finetune.commands.held_out_images import (
    add_data_options,
    build_held_out,
    warnings_in_one_line,
)
from finetune.commands.outputs import CHECKPOINTS, add_output, wanted_output
from finetune.commands.parsing import Parser
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.combining.calibrated_answer import Calibration
    from finetune.combining.ensemble import Ensemble


def main(arguments: list[str]) -> int:
    """Fit on held-out images that picked nothing, and write a copy that answers calibrated."""
    options = _parser().parse_args(arguments)
    with warnings_in_one_line():
        _calibrate(options)
    return 0


def calibrate(
    checkpoint: Where,
    data: Where,
    *,
    output: Where | None = None,
    quiet: bool = False,
    **options: Any,
) -> Ensemble:
    """Fit a temperature, and rules on request, as ``finetune calibrate`` does.

    Args:
        checkpoint: the file of a classifier, an average or an ensemble, or a run folder.
        data: the folder of images that the fits were made with; what they held out calibrates.
        output: the ``.ckpt`` file to write; without one nothing is written.
        quiet: print nothing.
        options: of the command by name, such as ``reject_risk=0.05``, ``conformal=0.1``,
            ``split="test"``, ``overwrite=True``.

    Returns:
        What answers calibrated: a classifier as an ensemble of one.

    Raises:
        CalibrationError: images that have picked members, or none at all.
        UsageError: a setting that is not there, or an output that must not be written.
    """
    given = {"checkpoint": checkpoint, "root": data, "output": output, **options}
    chosen = _parser().options_from(**given)
    with as_guest(quiet=quiet):
        return _calibrate(chosen)


def _calibrate(options: argparse.Namespace) -> Ensemble:
    output = wanted_output(
        options.output,
        endings=CHECKPOINTS,
        overwrite=options.overwrite,
        inputs=[options.checkpoint, options.manifest],
        images=[options.root],
    )
    if options.root is None:
        raise UsageError("Expected held-out images, found none; add --data.root DIR.")

    from finetune.combining.ensemble import Ensemble
    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.trainer import quiet_libraries
    from finetune.runtime import Runtime

    quiet_libraries()
    runtime = Runtime.chosen(options.accelerator)
    path = checkpoint_file(options.checkpoint)
    ensemble = runtime.place(Ensemble.from_file(path))
    if output is not None:
        output.keep_off(fits=ensemble.fitted_on)
    datamodule = build_held_out(options, ensemble)
    calibrated = ensemble.calibrate(
        datamodule,
        reject_risk=options.reject_risk,
        conformal=options.conformal,
        score=options.score,
        share=options.share,
        split=options.split,
        allow_reuse=options.allow_reuse,
    )
    for line in describe_calibration(calibrated.calibration):
        print(line)
    if output is not None:
        with output.writing() as beside:
            _write(calibrated, path, beside)
        print(f"calibrated checkpoint written to {output.path}")
    return calibrated


def describe_calibration(calibration: Calibration | None) -> list[str]:
    """What was fitted, in words."""
    if calibration is None:
        return []
    fit = calibration.fit
    lines = [
        f"temperature {fit.temperature:.3f} on {fit.images} images: "
        f"nll {fit.nll_before:.4f} before, {fit.nll_after:.4f} after"
    ]
    if calibration.reject is not None:
        rule = calibration.reject
        lines.append(
            f"reject below {rule.threshold:.4f}: {rule.coverage:.1%} accepted with "
            f"{rule.risk:.1%} wrong (at most {rule.risk_bound:.1%} with 95 % confidence)"
        )
    if calibration.conformal is not None:
        sets = calibration.conformal
        lines.append(
            f"prediction sets ({sets.score}) hold the true class in at least "
            f"{1 - sets.alpha:.0%} of images like these {sets.images}"
        )
    if calibration.out_of_fold:
        lines.append(
            "each image was answered by the folds that were not trained on it: the whole "
            "ensemble is usually a little better than these figures"
        )
    if calibration.chosen_by and calibration.conformal is not None:
        lines.append(
            "by these images the fit itself had chosen its epoch, phase or confidence, so sets of "
            "others may hold the true class a little less often; `finetune calibrate --split test` "
            "takes images that chose nothing (folds do not help: each chose by its own)"
        )
    if calibration.reused:
        lines.append("these images had picked members: the figures flatter")
    return lines


def _write(calibrated: Ensemble, source: Path, beside: Path) -> None:
    """A classifier stays a classifier's checkpoint, an ensemble an ensemble."""
    from finetune.training.checkpoints import ENTRY, read_content, write_checkpoint

    content = read_content(source)
    if content[ENTRY]["kind"] == "ensemble":
        calibrated.save(beside)
        return
    assert calibrated.calibration is not None
    write_checkpoint(
        beside,
        state_dict=content["state_dict"],
        hyper_parameters=content["hyper_parameters"],
        entry={
            **content[ENTRY],
            "calibration": calibrated.calibration.to_dict(),
            "roles": {role: list(ids) for role, ids in calibrated.roles.items()},
        },
    )


def _parser() -> Parser:
    parser = Parser(
        prog="finetune calibrate",
        description="Fit one temperature to a checkpoint's or an ensemble's answers, and on "
        "request a threshold to abstain by and prediction sets. Labels stay as they are.",
    )
    parser.add_argument("checkpoint", help="a checkpoint, an ensemble or a run folder")
    parser.add_argument(
        "--reject-risk", type=float, metavar="R", help="wanted share of wrong accepted answers"
    )
    parser.add_argument(
        "--conformal", type=float, metavar="A", help="accepted share of sets without the truth"
    )
    parser.add_argument(
        "--score",
        choices=["thr", "aps", "raps"],
        default="thr",
        help="how sets are built: thr smallest, aps and raps sized to the image",
    )
    parser.add_argument(
        "--split",
        choices=["val", "test"],
        default="val",
        help="whose images calibrate; test images chose nothing, but then cannot test any more",
    )
    add_output(parser, "the file", metavar="FILE.ckpt")
    add_data_options(parser)
    return parser
