"""``finetune fit``: a folder of images in, a run folder with a fine-tuned classifier out."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.recording import (
    data_errors,
    notes_of,
    say_what_lies_where,
    write_config,
    write_figures,
)
from finetune.commands.resume import Resumed, new_fit_from, say_finished
from finetune.errors import UsageError
from finetune.extras import need
from finetune.files import remove_left_behind
from finetune.processes import own_place

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    from finetune.commands.trainer import FinetuneCLI
    from finetune.commands.update import Updated
    from finetune.training.features.store import FeatureStore
    from finetune.training.model_selection import Candidate
    from finetune.training.phases.gradient import TrainerSettings


def main(arguments: list[str]) -> int:
    """Fit one classifier, or several members of a group."""
    from finetune.commands.multi_fit import fit_many, many_fits, resumed_group
    from finetune.commands.trainer import FinetuneCLI, quiet_libraries
    from finetune.commands.update import updated_run

    started = time.monotonic()
    quiet_libraries()
    updated_run(arguments)  # refuses several members beside it
    group, several = resumed_group(arguments), many_fits(arguments)
    if (group or several) and own_place().world_size > 1:
        raise UsageError(
            "Expected one fit in the processes that were started, found several members; run "
            "finetune fit without a launcher: each device is given a member of its own."
        )
    fits = group[0] if group else several
    if fits is not None and fits.engine == "ray":
        need("ray", "--engine ray")
    if group is not None:
        return fit_many(*group)
    if several is not None:
        # Refuses wrong settings before anything is made.
        own = next(iter(several.members.values())) if several.is_of_backbones else []
        cli = FinetuneCLI("fit", [*several.shared, *own], joins=False)
        cli.datamodule.setup("fit")
        check_figures(cli)
        if cli.backbone is not None:  # one for all members, whatever the hub answers later
            several.shared.append(f"--model.backbone={cli.backbone.value}")
        return fit_many(several, _new_folder(cli, "backbones" if own else None))
    fit_one(arguments, started=started)
    return 0


def fit_one(arguments: list[str], *, started: float) -> Path:
    """Fit one classifier; its run folder stays only if there is something to keep.

    Args:
        arguments: the options of ``finetune fit``.
        started: when, by the monotonic clock, a time limit began to count.
    """
    from finetune.commands.resume import resumed_run
    from finetune.commands.trainer import FinetuneCLI
    from finetune.commands.update import check_what_weights_know, updated_run
    from finetune.training.checkpoints import read_checkpoint

    resumed, updated = resumed_run(arguments), updated_run(arguments)
    if resumed is not None and resumed.is_finished:
        say_finished(resumed)
        return resumed.run
    given = resumed or updated
    cli = FinetuneCLI(
        "fit",
        arguments if given is None else given.arguments,
        updates=None if updated is None else read_checkpoint(updated.best),
    )
    limit = parse_time(cli.config.time_limit)
    deadline = None if limit is None else started + limit
    cli.datamodule.setup("fit")
    check_figures(cli)
    check_what_weights_know(cli)
    if resumed is not None:
        for place in (resumed.run, resumed.run / "checkpoints") if cli.runtime.is_main else ():
            remove_left_behind(place)
        fit(cli, resumed.run, deadline=deadline, resumed=resumed)
        return resumed.run
    folder = cli.runtime.agree(lambda: _new_folder(cli))  # one for all processes
    try:
        fit(cli, folder, deadline=deadline, updated=updated)
    except BaseException:
        if cli.runtime.is_main and not any((folder / "checkpoints").glob("*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def check_figures(cli: FinetuneCLI) -> None:
    """Refuse to wait for a figure that nothing gives, before an epoch is spent."""
    from finetune.commands.trainer_options import check_callbacks

    task = cli.model.task
    names = task.figure_names(task.number_of_outputs(cli.model.class_names))
    own = ["val/nll_rescaled"] if task.has_choices else []
    known = ["val/loss", *own, *(f"val/{name}" for name in names)]
    if cli.config.monitor == "val/nll":  # the default stands for what decides in the task
        cli.config.monitor = f"val/{task.deciding}"
    if cli.config.monitor not in known:
        raise UsageError(
            f"Expected --monitor to be one of {', '.join(known)}, found {cli.config.monitor!r}."
        )
    held_out = known if cli.datamodule.images("val") else []
    check_callbacks(given_callbacks(cli), [*held_out, "train/loss"])


def given_callbacks(cli: FinetuneCLI) -> list[Callback]:
    """The user's own."""
    given = cli.config_init["trainer"].as_dict()["callbacks"] or []
    return given if isinstance(given, list) else [given]  # one alone is no list


def _new_folder(cli: FinetuneCLI, name: str | None = None) -> Path:
    from finetune.commands.runs import new_run_folder

    backbone = cli.model.backbone.replace(":", "-").replace("/", "-").strip("-.")
    name = cli.config.name or name or backbone
    return new_run_folder(Path(cli.config.runs), name, images=cli.datamodule.given_root)


def parse_time(text: str | None) -> float | None:
    """Seconds of ``90s``, ``10m`` or ``2h``; None stays None.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"Expected a time limit such as 90s, 10m or 2h, found {text!r}.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def fit(
    cli: FinetuneCLI,
    folder: Path,
    *,
    deadline: float | None = None,
    resumed: Resumed | None = None,
    updated: Updated | None = None,
) -> None:
    """Train into the run folder, then put the best epoch's figures beside it."""
    from finetune.commands.apply_recipe import (
        apply_recipe,
        does_the_data_suffice,
        licence_of_weights,
    )
    from finetune.commands.runs import link_latest, timed_fit
    from finetune.commands.trainer_options import check_amounts
    from finetune.commands.update import compare_with_old, lines_about_val
    from finetune.runtime import lost_another
    from finetune.training.tracking import tracked

    is_first = cli.runtime.is_main
    data = cli.datamodule
    data.prepare_for(cli.model.preprocessing, cli.runtime.device)  # before any trainer ties the two
    recipe = apply_recipe(cli, seconds=parse_time(cli.config.time_limit))
    batches = {side: -(-len(data.images(side)) // data.batch_size) for side in ("train", "val")}
    check_amounts(cli.config.trainer, **batches)
    if is_first:
        lines = "\n".join(str(choice) for choice in recipe)
        # Of a fit that begins from another.
        changed = [*filter(None, [cli.datamodule.differences]), *lines_about_val(cli)]
        print(data.summary(), *changed, *data_errors(data.findings, data.given_root), sep="\n")
        print(lines, *licence_of_weights(cli), does_the_data_suffice(cli), sep="\n", flush=True)
        if resumed is None or cli.checkpoint is None:
            cli.datamodule.write_records(folder)
            if resumed is None or resumed.beside:
                # The last of the records: a run with it can be resumed.
                write_config(folder, lines.splitlines(), cli.config_yaml())
    epochs = next(choice.value for choice in recipe if choice.name == "epochs")
    with ExitStack() as around:
        if is_first:
            around.enter_context(timed_fit(folder))
            around.enter_context(tracked(folder))
        try:
            if cli.model.teacher is not None:
                teach(cli, cli.model.teacher)
            best = run_phases(cli, folder, epochs, deadline=deadline, resumed=resumed)
        except BaseException as stop:
            ended = isinstance(stop, SystemExit)  # Lightning's answer to Ctrl-C and SIGTERM
            last = folder / "checkpoints" / "last.ckpt"
            stopped = ended or isinstance(stop, KeyboardInterrupt) or lost_another(stop)
            if is_first and stopped and last.is_file():
                print(f"stopped; resume with: finetune fit --resume {folder}", flush=True)
            if ended:
                raise KeyboardInterrupt from stop
            raise
        finally:
            if is_first and any((folder / "checkpoints").glob("*.ckpt")):
                link_latest(folder)
        if is_first:
            write_figures(folder, best, [*data.images("train"), *data.images("val")])
            if updated is not None:
                compare_with_old(cli, updated.run, folder)
    if is_first:
        say_what_lies_where(folder)


def teach(cli: FinetuneCLI, teacher: str) -> None:
    """Ask the teacher about the training images, once; its answers become soft labels."""
    from finetune.commands.distillation_targets import teacher_probabilities
    from finetune.training.phases.probe import linear_head

    if cli.model.hparams["strategy"] == "head" and linear_head(cli.model.network) is not None:
        raise UsageError(
            "Expected a strategy with gradient steps beside --model.teacher, found head, which is "
            "fitted to the labels in closed form; give --model.strategy head-then-all."
        )
    cli.datamodule.soft_labels = teacher_probabilities(
        teacher, cli.datamodule, _store(cli), cli.runtime
    )


def run_phases(
    cli: FinetuneCLI,
    folder: Path,
    epochs: int,
    *,
    deadline: float | None,
    resumed: Resumed | None,
) -> Candidate | None:
    """One phase after the other, into ``folder/checkpoints``; the model is the best in the end."""
    from finetune.commands.resume import copy_candidates
    from finetune.reporting.thumbnails import read_located
    from finetune.runtime import use_fast_float32
    from finetune.training.phases.phased_fit import PhasedFit
    from finetune.training.tracking import configured_loggers, track_best

    is_first = cli.runtime.is_main
    use_fast_float32(cli.runtime.device)
    cli.runtime.place(cli.model)
    configured = cli.config_init["trainer"].as_dict()["logger"]
    loggers = configured_loggers(configured, folder, cli.named_entities)

    def new_trainer(settings: TrainerSettings) -> Trainer:
        if is_first and resumed is not None and resumed.beside and cli.checkpoint is not None:
            # What was given beside --resume takes effect now.
            write_config(folder, notes_of(folder), cli.config_yaml(as_given=True))
        return build_trainer(cli, folder, loggers, settings)

    checkpoints = folder / "checkpoints"
    resume = None if cli.config.ckpt_path is None else Path(cli.config.ckpt_path)
    if resume is not None and is_first:
        copy_candidates(resume.parent, checkpoints)
    cli.runtime.barrier()
    phased_fit = PhasedFit(
        cli.model,
        cli.datamodule,
        checkpoints,
        new_trainer,
        strategy=cli.model.hparams["strategy"],
        epochs=epochs,
        monitor=cli.config.monitor,
        patience=cli.config.patience or 0,
        store=_store(cli),
        deadline=deadline,
        say=print if is_first else _silent,
    )
    try:
        phased_fit.run(resume)
    finally:  # nobody may ever resume a fit that was stopped
        if loggers and is_first and phased_fit.best.is_file():
            track_best(loggers, phased_fit.best, lambda p: read_located(p, cli.datamodule.root))
    if is_first and resume is not None and resumed is None and phased_fit.trainer is None:
        print(f"nothing was left to train after {resume}; {new_fit_from(resume)}")
    return phased_fit.found


def _store(cli: FinetuneCLI) -> FeatureStore | None:
    """Where what was computed for an image is cached; None with ``--data.cache off``."""
    from finetune.training.features.store import FeatureStore

    cache_dir = cli.config.data.cache_dir
    cache_dir = None if cache_dir is None else str(cache_dir)
    return FeatureStore.wanted(cli.config.data.cache, cache_dir)


def build_trainer(
    cli: FinetuneCLI, folder: Path, loggers: list[Logger], phase: TrainerSettings
) -> Trainer:
    """Lightning's trainer for one phase, with our loggers and progress in the run folder."""
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from finetune.commands.terminal import on_terminal, progress_bar
    from finetune.training.epoch_log import EpochLog
    from finetune.training.progress import EpochLine

    settings = cli.config_init["trainer"].as_dict()
    watched = on_terminal() and settings["enable_progress_bar"] is not False
    theirs = given_callbacks(cli)
    for callback in theirs:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            # Beside ours, where a last.ckpt of theirs is not taken for the one to go on from.
            callback.dirpath = str(folder / "model_checkpoints")
    ours: list[Callback] = [
        *phase.callbacks,
        *([LearningRateMonitor("epoch")] if loggers else []),
        EpochLog(folder / "metrics.csv", phase.phase),
        progress_bar() if watched else EpochLine(),
    ]
    accumulate = phase.accumulate_grad_batches * (settings["accumulate_grad_batches"] or 1)
    return cli.build_trainer(
        logger=loggers,
        callbacks=[*theirs, *ours],
        default_root_dir=str(folder),
        enable_progress_bar=watched,
        max_epochs=phase.max_epochs,
        precision=cli.config.trainer.precision,
        accumulate_grad_batches=accumulate,
        max_time=settings["max_time"],
    )


def _silent(line: str) -> None:
    """What the other processes of a distributed fit say."""
