"""``finetune ensemble``: the answers of several checkpoints in one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from finetune.commands.calibrate import describe_calibration
from finetune.commands.guest import Where, each_of
from finetune.commands.held_out_images import OF_FITS, HeldOut, build_held_out
from finetune.commands.outputs import (
    CHECKPOINTS,
    FIGURES,
    CheckpointFile,
    Output,
    wanted_output,
)
from finetune.commands.verb import Typed, verb
from finetune.errors import UsageError
from finetune.spec.choices import Metric, Pooling, Selecting, Share

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.combining.held_out import HeldOut as Answers
    from finetune.combining.member_outputs import DataModules
    from finetune.data.datamodule import ImageFolderDataModule


@verb
def ensemble(
    checkpoints: Where | Sequence[Where],
    data: Annotated[Where | None, OF_FITS] = None,
    *,
    select: Selecting = "all",
    pooling: Pooling = "mean",
    coefficients: Annotated[Sequence[float] | None, Typed(metavar="C")] = None,
    metric: Metric = "nll",
    heads: Annotated[int | None, Typed(metavar="N")] = None,
    joint: bool = False,
    max_members: Annotated[int | None, Typed(metavar="N")] = None,
    min_gain: float = 0.0,
    figure: Annotated[Where | None, Typed(metavar="FILE.png")] = None,
    seed: int = 0,
    calibrate: bool = False,
    reject_risk: Annotated[float | None, Typed(metavar="R")] = None,
    conformal: Annotated[float | None, Typed(metavar="A")] = None,
    output: CheckpointFile = None,
    overwrite: bool = False,
    quiet: bool = False,
    **held_out: Unpack[HeldOut],
) -> Ensemble:
    """Combine checkpoints of any backbones and sizes, other ensembles and saved predictions.

    Each image is decoded once for all of them.

    Args:
        checkpoints: files, run folders, or groups of them.
        data: the folder of images that the fits were made with; what they held out selects and
            calibrates.
        select: which members stay, by held-out images.
        pooling: mean of probabilities, of logits (geometric), or majority vote.
        coefficients: one a member.
        metric: what greedy lowers.
        heads: of one checkpoint: N final layers on its backbone, each fitted on a bootstrap sample.
        joint: one final layer fitted to the features of all, taken where it answers the picking
            half of the val images better than the members together or those that are selected.
        max_members: keep at most so many; the folds of one recipe count as one.
        min_gain: least rise of the metric, on leaving out a member of average time, that keeps it.
        figure: draw how much the members differ, pair by pair.
        seed: of the guards against overfitting.
        calibrate: fit a temperature as well.
        reject_risk: as for calibrate.
        conformal: as for calibrate.
        output: the file to write.
        overwrite: replace what is there.
        quiet: print nothing.
        held_out: how the images are read, and which of them judge.

    Raises:
        CheckpointMismatchError: members with different classes.
        UsageError: settings that contradict each other, or an output that must not be written.
    """
    paths = each_of(checkpoints)
    rule: dict[str, Any] = {
        "overwrite": overwrite,
        "inputs": [*paths, held_out.get("manifest")],
        "images": [data],
    }
    written = wanted_output(output, endings=CHECKPOINTS, **rule)
    drawn = wanted_output(figure, endings=FIGURES, option="--figure", **rule)
    calibrates = calibrate or reject_risk is not None or conformal is not None
    if data is None:
        _refuse_without_images(drawn, judged=calibrates or joint or select != "all")
    if joint and (heads or coefficients or max_members or (select, pooling) != ("all", "mean")):
        raise UsageError(
            "Expected --joint alone to decide how members answer together, found --heads, "
            "--coefficients, --max-members, --select or --pooling beside it; leave these out."
        )

    from finetune.combining.ensemble import Ensemble
    from finetune.commands.bootstrap_heads import heads_on_one_backbone
    from finetune.commands.multi_fit import with_members
    from finetune.commands.trainer import quiet_libraries
    from finetune.runtime import Runtime

    quiet_libraries()
    runtime = Runtime.chosen(held_out.get("accelerator", "auto"))
    if heads is not None:
        members = heads_on_one_backbone(paths, data, held_out, runtime, heads=heads, seed=seed)
    else:
        members = Ensemble.from_checkpoints(
            with_members(paths), coefficients=coefficients, pooling=pooling
        )
    for each in filter(None, (written, drawn)):
        each.keep_off(fits=members.fitted_on)
    if drawn is not None and not members.task.has_choices:
        raise UsageError(
            "Expected names for --figure, which compares members by what they name, found numbers; "
            "leave it out: `finetune predict` tells how far they disagree."
        )
    chosen = members
    if data is not None:
        images = build_held_out(data, held_out, runtime.place(members))
        share = held_out.get("share", "half")
        choice = {"method": select, "metric": metric, "max_members": max_members, "seed": seed}
        if joint:
            chosen = _joined(members, images, held_out, share=share, seed=seed)
        else:
            chosen = _select_and_show(members, images, choice, min_gain=min_gain, share=share)
        if drawn is not None:
            write_diversity(drawn, members, members.held_out(images))
        if calibrates:
            chosen = chosen.calibrate(
                images,
                reject_risk=reject_risk,
                conformal=conformal,
                share=share,
                allow_reuse=held_out.get("allow_reuse", False),
            )
            print(*describe_calibration(chosen.calibration), sep="\n")
    if written is not None:
        with written.writing() as beside:
            chosen.save(beside)
        print(f"ensemble of {len(chosen.parts)} written to {written.path}")
    return chosen


def _refuse_without_images(figure: Output | None, *, judged: bool) -> None:
    if figure is not None:
        raise UsageError(
            f"Expected held-out images beside --figure {figure.path}, found none; "
            "add --data.root DIR."
        )
    if judged:
        raise UsageError(
            "Expected held-out images to select or calibrate on, found none; "
            "add --data.root DIR, or take --select all."
        )


def _joined(
    members: Ensemble,
    images: ImageFolderDataModule | dict[int, ImageFolderDataModule],
    held_out: HeldOut,
    *,
    share: Share,
    seed: int,
) -> Ensemble:
    """The joint probe, unless the members answer better, and how good that is."""
    from finetune.commands.joined_backbones import joined_or_better
    from finetune.commands.member_worth import honest_accuracy
    from finetune.training.features.store import FeatureStore

    store = FeatureStore.wanted(held_out.get("cache", "auto"), held_out.get("cache_dir"))
    chosen = joined_or_better(members, images, store, share=share, seed=seed)
    of_all: dict[str, Any] = {"method": "all", "metric": "nll", "max_members": None, "seed": seed}
    print(honest_accuracy(chosen, chosen.held_out(images), **of_all))
    return chosen


def _select_and_show(
    members: Ensemble, images: DataModules, choice: dict[str, Any], *, min_gain: float, share: Share
) -> Ensemble:
    """The members that help, and what each is worth on held-out images."""
    from finetune.commands.member_worth import describe_ensemble, honest_accuracy

    chosen = members.select(images, **choice, min_gain=min_gain, share=share)
    answers = members.held_out(images)
    print(*describe_ensemble(members, chosen, answers, chosen.held_out(images)), sep="\n")
    print(honest_accuracy(chosen, answers, **choice))
    return chosen


def write_diversity(figure: Output, whole: Ensemble, answers: Answers) -> None:
    """The members' pairs as an image: who gives other answers, and who errs together."""
    from finetune.combining.diversity import diversity
    from finetune.commands.member_worth import row_names
    from finetune.reporting.diversity import diversity_figure
    from finetune.reporting.style import save_png

    found = diversity(*whole.task.rows(answers.member_logits, answers.labels))
    with figure.writing() as beside:
        save_png(diversity_figure(found, row_names(whole, answers)), beside)
    print(f"diversity of the members in {figure.path}")
