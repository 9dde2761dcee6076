"""``validate`` and ``test``: judge a checkpoint; figures, answers and report go to its run."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Unpack

from finetune.commands.config_files import checkpoint_option
from finetune.commands.guest import Where
from finetune.commands.held_out_images import OF_FITS, HeldOut
from finetune.commands.parsing import take_all
from finetune.commands.verb import Typed, parser_of
from finetune.extras import missing, remedy

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.commands.trainer import FinetuneCLI
    from finetune.spec.images import LabelledImage
    from finetune.tasks.task import Task
    from finetune.training.thresholds import Thresholds

Verb = Literal["validate", "test"]
STAGES: dict[Verb, Literal["val", "test"]] = {"validate": "val", "test": "test"}


class Judged(NamedTuple):
    """The answers to a stage's images, and where they are to be kept: ``runs`` and ``name`` say
    it where the checkpoint lies in no run folder.

    ``features`` is what entered the final layer, ``(B, D)`` a batch; empty where it is not known.
    ``groups`` keeps images together, by what the data say or because their contents are equal.
    """

    task: Task
    logits: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    paths: list[Path]
    checkpoint: Path
    runs: str
    name: str
    root: Path
    seconds: float
    features: list[Tensor]
    thresholds: Thresholds | None
    groups: list[Hashable | None]
    half_width: float | None = None

    @property
    def ms_per_image(self) -> float:
        """Milliseconds an image, reading it included."""
        return 1000 * self.seconds / len(self.labels)


def judge(verb: Verb, arguments: list[str]) -> dict[str, float | str]:
    """Run one pass over the held-out images; write ``metrics.json`` and, for test, the report.

    Figures of another folder's images stand beside those of the first, under its name.

    Returns:
        The figures, as ``metrics.json`` keeps them.
    """
    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.figure_lines import intervals_of, say_figures, say_what_they_hang_on
    from finetune.commands.report_of_test import track, write_report_of
    from finetune.commands.runs import free_stage
    from finetune.commands.trainer import quiet_libraries
    from finetune.evaluation.judge import numbered
    from finetune.runtime import process_rank
    from finetune.training.metrics_file import write_metrics

    quiet_libraries()
    stage = STAGES[verb]
    arguments, named_entities = take_all(arguments, "--track-to")
    path = checkpoint_option(arguments)
    if path is not None and os.path.isdir(path):  # a run folder stands for the best of it
        path = str(checkpoint_file(path))
        arguments = [*arguments, f"--ckpt_path={path}"]
    combined = path is not None and _is_combined(path)
    judged = _judge_combined(verb, arguments) if combined else _judge_classifier(verb, arguments)
    figures = judged.task.figures(judged.logits, judged.labels, judged.thresholds)
    groups = numbered(judged.groups)
    intervals = intervals_of(judged.task, judged.logits, judged.labels, groups)
    images = str(judged.root.resolve())
    kept: dict[str, float | str] = {
        **figures,
        "images": images,
        "ms_per_image": judged.ms_per_image,
        **{f"{name}_low": low for name, (low, _) in intervals.items()},
        **{f"{name}_high": high for name, (_, high) in intervals.items()},
    }
    if process_rank() > 0:
        return kept  # every process has the answers of all, and the first alone writes
    # Before anything is written: whatever the disk says.
    say_figures(judged.task, stage, figures, intervals, len(judged.labels))
    say_what_they_hang_on(judged.task, judged.logits, judged.labels, groups, judged.paths)
    folder = _folder_for(judged)
    key = free_stage(folder, stage, images)
    write_metrics(folder, key, kept)
    print(f"figures   {folder / 'metrics.json'}")
    if stage == "test" and missing("report"):
        print(f"report    none: {remedy('report')}")
    elif stage == "test":
        section, page = write_report_of(judged, folder, "report" + key.removeprefix("test"))
        print(f"report    {page}")
        print(section.answer)
        track(folder, page.parent, section.evaluation, named_entities)
    return kept


def _is_combined(path: str) -> bool:
    """Whether a checkpoint answers by more than one plain network, or held-out images made it."""
    from finetune.training.checkpoints import ENTRY, read_content

    entry = read_content(path, mmap=True)[ENTRY]
    return entry["kind"] == "ensemble" or any(entry.get(key) for key in ("calibration", "roles"))


def _judge_classifier(verb: Verb, arguments: list[str]) -> Judged:
    """A single network, through Lightning's trainer."""
    from finetune.commands.held_out_images import say_differences
    from finetune.commands.trainer import FinetuneCLI
    from finetune.reporting.embeddings import listened_to
    from finetune.training.features.recorded import recorded_features

    cli = FinetuneCLI(verb, arguments)
    assert cli.checkpoint is not None
    cli.model.load_weights(cli.checkpoint.state_dict, source=str(cli.checkpoint.path))
    cli.model.see_as(cli.checkpoint)
    if verb == "validate" and (kept := _out_of_fold(cli)) is not None:
        return kept
    cli.datamodule.setup(verb)
    if cli.runtime.is_main:
        say_differences(cli.datamodule, cli.record)
    started = time.perf_counter()
    with recorded_features(listened_to(cli.model)) as features:
        _run_trainer(cli, verb)
    seconds = time.perf_counter() - started
    stage = STAGES[verb]
    logits, labels = cli.model.answers[stage]
    # Fewer answers than images where the trainer limits its batches.
    images = cli.datamodule.images(stage)[: len(labels)]
    return _judged(cli, logits, labels, images, seconds, features)


def _judged(
    cli: FinetuneCLI,
    logits: Tensor,
    labels: Tensor,
    images: Sequence[LabelledImage],
    seconds: float,
    features: list[Tensor],
) -> Judged:
    """The answers of the command's classifier to these images."""
    from finetune.data.groups import groups_with_duplicates
    from finetune.training.thresholds import thresholds_of

    assert cli.checkpoint is not None
    return Judged(
        cli.model.task,
        logits,
        labels,
        cli.model.class_names,
        [image.path for image in images],
        cli.checkpoint.path,
        cli.config.runs,
        cli.config.name or cli.verb,
        cli.datamodule.given_root,
        seconds,
        features,
        thresholds_of(cli.model.task, cli.checkpoint.details),
        groups_with_duplicates(images),
    )


def _out_of_fold(cli: FinetuneCLI) -> Judged | None:
    """Where nothing is held out because all have learnt, the answers of fits without each image."""
    import torch

    from finetune.training.fitted_splits import out_of_fold_answers

    assert cli.checkpoint is not None
    answers = out_of_fold_answers(cli.checkpoint.details)
    images = [image for image in cli.datamodule.images("train") if image.id in answers]
    if cli.datamodule.images("val") or not images:
        return None
    logits = torch.stack([answers[image.id] for image in images])
    labels = cli.model.task.collate([image.label for image in images])
    return _judged(cli, logits, labels, images, 0.0, [])


def _run_trainer(cli: FinetuneCLI, verb: Verb) -> None:
    from finetune.commands.terminal import on_terminal, progress_bar
    from finetune.training.progress import PassLine

    trainer = cli.build_trainer(
        logger=False,
        callbacks=[progress_bar() if on_terminal() else PassLine("Judging")],
        enable_progress_bar=on_terminal(),
        enable_checkpointing=False,
    )
    try:
        judge: Any = trainer.validate if verb == "validate" else trainer.test
        judge(cli.model, datamodule=cli.datamodule, verbose=False)
    except SystemExit as stop:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from stop


def _judge_combined(verb: Verb, arguments: list[str]) -> Judged:
    """An ensemble, or anything calibrated, with the options that it takes."""
    options = parser_of(_answers_of_members, name=verb, without=("verb",)).typed(arguments)
    return _answers_of_members(verb, **options)


def _answers_of_members(
    verb: Verb,
    data: Annotated[Where, OF_FITS],
    *,
    ckpt_path: Annotated[Where, Typed(("--ckpt_path",))],
    name: str | None = None,
    runs: Where = "runs",
    track_to: Annotated[str | None, Typed(metavar="ENTITY")] = None,
    **held_out: Unpack[HeldOut],
) -> Judged:
    """Judge an ensemble, or what is calibrated: each image decoded once for all members.

    Args:
        verb: that judges.
        data: the folder of images.
        ckpt_path: the file to judge.
        name: name of the run, where the file lies in none.
        runs: folder of all runs.
        track_to: Weights & Biases entity that figures may go to beside your own ones.
        held_out: how the images are read, and which of them judge.
    """
    from finetune.combining.ensemble import Ensemble
    from finetune.combining.holdout_roles import in_whole_ids, refuse_reuse
    from finetune.commands.held_out_images import build_held_out
    from finetune.data.groups import groups_with_duplicates
    from finetune.reporting.embeddings import listened_to
    from finetune.runtime import Runtime
    from finetune.training.features.recorded import recorded_features

    stage = STAGES[verb]
    runtime = Runtime.chosen(held_out.get("accelerator", "auto"))
    ensemble = runtime.place(Ensemble.from_file(Path(ckpt_path)))
    datamodule = build_held_out(data, held_out, ensemble)
    modules = list(datamodule.values()) if isinstance(datamodule, dict) else [datamodule]
    for module in modules:
        module.setup(verb)
    started = time.perf_counter()
    with recorded_features(listened_to(ensemble)) as features:
        answers = ensemble.held_out(datamodule, stage)
    seconds = time.perf_counter() - started
    of_image = {
        str(image.path): group
        for images in (module.images(stage) for module in modules)
        for image, group in zip(images, groups_with_duplicates(images), strict=True)
    }
    roles = in_whole_ids(ensemble.roles, answers.paths, answers.ids)
    refuse_reuse(roles, answers.ids, verb, allow_reuse=held_out.get("allow_reuse", False))
    return Judged(
        ensemble.task,
        ensemble.calibrated(ensemble.pool_held_out(answers)),
        answers.labels,
        tuple(ensemble.class_names),
        [Path(path) for path in answers.paths],
        Path(ckpt_path),
        os.fspath(runs),
        name or verb,
        modules[0].given_root,
        seconds,
        features,
        ensemble.thresholds,
        [of_image.get(str(path)) for path in answers.paths],
        None if ensemble.calibration is None else ensemble.calibration.half_width,
    )


def _folder_for(judged: Judged) -> Path:
    """The checkpoint's own run folder, or a new one where it lies in none."""
    from finetune.commands.runs import new_run_folder, run_folder_of

    own = run_folder_of(judged.checkpoint)
    return own or new_run_folder(Path(judged.runs), judged.name, images=judged.root)
