"""``finetune calibrate``: temperature, reject threshold and prediction sets into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Unpack

from finetune.commands.folder_options import MAX_PIXELS
from finetune.commands.guest import Where
from finetune.commands.held_out_images import OF_FITS, HeldOut, build_held_out
from finetune.commands.outputs import CHECKPOINTS, CheckpointFile, wanted_output
from finetune.commands.verb import Typed, verb
from finetune.errors import UsageError
from finetune.spec.choices import Scaling, SetScore
from finetune.spec.settings import OPEN_SHARE

if TYPE_CHECKING:
    from finetune.combining.calibrated_answer import Calibration
    from finetune.combining.ensemble import Ensemble
    from finetune.combining.unknown import UnknownRule
    from finetune.training.features.store import FeatureStore


@verb
def calibrate(
    checkpoint: Where,
    data: Annotated[Where, OF_FITS],
    *,
    reject_risk: Annotated[float | None, Typed(metavar="R")] = None,
    conformal: Annotated[float | None, Typed(metavar="A")] = None,
    unknown: Annotated[float | None, OPEN_SHARE, Typed(metavar="A")] = None,
    unknown_examples: Annotated[Where | None, Typed(metavar="DIR")] = None,
    score: SetScore = "thr",
    scaling: Scaling = "common",
    wanted_precision: Annotated[float | None, OPEN_SHARE, Typed(metavar="P")] = None,
    split: Literal["val", "test"] = "val",
    output: CheckpointFile = None,
    overwrite: bool = False,
    quiet: bool = False,
    **held_out: Unpack[HeldOut],
) -> Ensemble:
    """Fit one temperature to a checkpoint's or an ensemble's answers, and rules on request.

    The rules are a threshold to abstain by, prediction sets, and which images are of no class that
    was learnt. Labels stay as they are.

    Args:
        checkpoint: a checkpoint, an average, an ensemble or a run folder.
        data: the folder of images that the fits were made with; what they held out calibrates.
        reject_risk: wanted share of wrong accepted answers.
        conformal: accepted share of sets, or of intervals about numbers, without the truth; of
            several labels an image, accepted share of true labels that its set lacks.
        unknown: accepted share of known images that are called unknown.
        unknown_examples: images of other things: it says how many are caught; they decide nothing.
        score: how sets are built: thr smallest, aps and raps sized to the image.
        scaling: of several labels an image: one temperature for all, or a factor and a shift for
            each label.
        wanted_precision: of several labels an image: thresholds with this precision, instead of
            those with the best F1.
        split: whose images calibrate; test images chose nothing, but then cannot test any more.
        output: the file to write.
        overwrite: replace what is there.
        quiet: print nothing.
        held_out: how the images are read, and which of them calibrate.

    Returns:
        What answers calibrated: a classifier as an ensemble of one.

    Raises:
        CalibrationError: images that have picked members, or none at all.
        UsageError: a setting that is not there, or an output that must not be written.
    """
    written = wanted_output(
        output,
        endings=CHECKPOINTS,
        overwrite=overwrite,
        inputs=[checkpoint, held_out.get("manifest")],
        images=[data, unknown_examples],
    )
    if unknown_examples is not None and unknown is None:
        raise UsageError(
            "Expected --unknown beside --unknown-examples, found none; give --unknown 0.05."
        )

    from finetune.combining.ensemble import Ensemble
    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.trainer import quiet_libraries
    from finetune.runtime import Runtime
    from finetune.training.features.store import FeatureStore

    quiet_libraries()
    runtime = Runtime.chosen(held_out.get("accelerator", "auto"))
    path = checkpoint_file(Path(checkpoint))
    ensemble = runtime.place(Ensemble.from_file(path))
    if written is not None:
        written.keep_off(fits=ensemble.fitted_on)
    store = FeatureStore.wanted(held_out.get("cache", "auto"), held_out.get("cache_dir"))
    calibrated = ensemble.calibrate(
        build_held_out(data, held_out, ensemble),
        reject_risk=reject_risk,
        conformal=conformal,
        unknown=unknown,
        score=score,
        scaling=scaling,
        wanted_precision=wanted_precision,
        share=held_out.get("share", "half"),
        split=split,
        allow_reuse=held_out.get("allow_reuse", False),
        store=store,
    )
    print(*describe_calibration(calibrated.calibration), sep="\n")
    if calibrated.unknown is not None:
        print(*describe_unknown(calibrated.unknown), sep="\n")
    if unknown_examples is not None:
        limit = held_out.get("max_pixels", MAX_PIXELS)
        print(_caught(calibrated, unknown_examples, max_pixels=limit, store=store))
    if written is not None:
        with written.writing() as beside:
            _write(calibrated, path, beside)
        print(f"calibrated checkpoint written to {written.path}")
    return calibrated


def describe_calibration(calibration: Calibration | None) -> list[str]:
    """What was fitted, in words."""
    if calibration is None:
        return []
    lines = []
    if (fit := calibration.fit) is not None:
        lines.append(
            f"temperature {fit.temperature:.3f} on {fit.images} images: "
            f"nll {fit.nll_before:.4f} before, {fit.nll_after:.4f} after"
        )
    if (rule_of_numbers := calibration.interval) is not None:
        lines.append(
            f"intervals of plus and minus {rule_of_numbers.half_width:.4g} hold the true number in "
            f"at least {1 - rule_of_numbers.alpha:.0%} of images like these "
            f"{rule_of_numbers.images}"
        )
    if calibration.reject is not None:
        rule = calibration.reject
        lines.append(
            f"reject below {rule.threshold:.4f}: {rule.coverage:.1%} accepted with "
            f"{rule.risk:.1%} wrong (at most {rule.risk_bound:.1%} with 95 % confidence)"
        )
    if calibration.scaling is not None:
        after = calibration.scaling.nll_after
        lines.append(
            f"each label by a factor and a shift of its own instead: nll {after:.4f} after"
        )
    if calibration.precision is not None:
        lines.append(
            f"thresholds for a precision of {calibration.precision:g} on these images; "
            "`finetune test` tells what it is on others"
        )
    if calibration.conformal is not None and calibration.conformal.of_labels:
        sets = calibration.conformal
        lines.append(
            f"prediction sets miss at most {sets.alpha:.0%} of an image's true labels, on average "
            f"over images like these {sets.images}"
        )
    elif calibration.conformal is not None:
        sets = calibration.conformal
        lines.append(
            f"prediction sets ({sets.score}) hold the true class in at least "
            f"{1 - sets.alpha:.0%} of images like these {sets.images}"
        )
    if calibration.out_of_fold:
        lines.append(
            "each image was answered by a fit without it: what has learnt from all of them is "
            "usually a little better than these figures"
        )
        if calibration.conformal is not None or calibration.interval is not None:
            lines.append("the share that sets of such answers hold is usual, not proven")
    if calibration.chosen_by and (calibration.conformal or calibration.interval):
        what = "sets of others may hold the true class"
        if calibration.interval:
            what = "intervals of others may hold the true number"
        lines.append(
            "by these images the fit itself had chosen its epoch, phase or confidence, so "
            f"{what} a little less often; `finetune calibrate --split test` "
            "takes images that chose nothing (folds do not help: each chose by its own)"
        )
    if calibration.reused:
        lines.append("these images had picked members: the figures flatter")
    return lines


def describe_unknown(rule: UnknownRule) -> list[str]:
    """What was fitted, in words."""
    least, most = rule.false_alarms
    names = {
        "mahalanobis": "Mahalanobis distance to the nearest class mean",
        "neighbours": "cosine distance to near training images",
        "doubt": "doubt of a linear probe on the features",
    }
    told = "no class can be left out of numbers to try it: give --unknown-examples DIR"
    if rule.auroc is not None:
        area, low, high = rule.auroc
        told = f"AUROC {area:.3f} [{low:.3f}, {high:.3f}] for training classes left out in turn"
    return [
        f"unknown by the {names[rule.familiar.score]}: {told}",
        f"at most {rule.alpha:.0%} of known images like these {rule.images} are called unknown, on "
        f"average over such images; by this very line {least:.1%} to {most:.1%} (95 %)",
    ]


def _caught(
    calibrated: Ensemble, strangers: Where, *, max_pixels: int, store: FeatureStore | None
) -> str:
    """How many of these images of something else are called unknown, in words."""
    import torch

    from finetune.evaluation.intervals import wilson_interval
    from finetune.prediction.feature_space import features_of

    assert calibrated.unknown is not None
    found = features_of(calibrated, strangers, max_pixels=max_pixels, store=store)
    strangeness = calibrated.unknown.strangeness(torch.from_numpy(found.values))
    number, images = int((strangeness > 1).sum()), len(found)
    low, high = wilson_interval(number, images)
    return (
        f"{number} of {images} examples of something else are called unknown: "
        f"{number / images:.0%} [{low:.0%}, {high:.0%}]"
    )


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
            "unknown": None if calibrated.unknown is None else calibrated.unknown.to_entry(),
        },
    )
