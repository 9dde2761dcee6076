"""What can be reported on: a run folder, a checkpoint, or a CSV of predictions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from finetune.combining.calibrated_answer import Calibration
from finetune.errors import DataError, UsageError
from finetune.evaluation.judge import judge, numbered, with_names, with_paths
from finetune.evaluation.judgement import Judgement
from finetune.reporting.answer import Answer, answer_of
from finetune.reporting.details import (
    ReportDetails,
    how_to_test,
    read_details,
    root_of,
)
from finetune.reporting.thumbnails import locate
from finetune.reporting.triage import rank_suspects
from finetune.tables.reading import read_table
from finetune.tables.writing import ENDINGS
from finetune.tasks.regression import REGRESSION
from finetune.training.checkpoints import (
    ENTRY,
    Checkpoint,
    as_checkpoint,
    read_checkpoint,
    read_content,
)
from finetune.training.fitted_splits import out_of_fold_answers
from finetune.training.metrics_file import read_metrics
from finetune.training.thresholds import mean_thresholds, thresholds_of

TEST_ANSWERS = ("report/predictions.csv", "predictions.csv")
FOLDS = "fold-*/checkpoints/best.ckpt"  # below a group that `fit --folds` has made
CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")


@dataclass(frozen=True, eq=False)
class Source:
    """An evaluation with all that its place tells about it.

    Attributes:
        columns: for a leaderboard: parameters, size, ...
        weights: the checkpoint that gave the answers, where it is known.
    """

    name: str
    evaluation: Judgement
    details: ReportDetails = field(default_factory=ReportDetails)
    columns: Mapping[str, str | float] = field(default_factory=dict)
    weights: Path | None = None

    @property
    def title(self) -> str:
        """The name, and which images it is about."""
        return f"{self.name} ({self.details.stage})" if self.details.stage else self.name

    @property
    def answer(self) -> Answer:
        """What its figures say."""
        suspects = rank_suspects(self.evaluation, embeddings=self.details.embeddings)
        return answer_of(self.evaluation, self.details, suspects)


def load_source(path: str | Path, *, root: Path | None = None) -> Source:
    """Open a run folder, a group of folds, a checkpoint or a CSV of predictions.

    Of the folds of a cross-validation, each answers for the images that it held out. A run is
    judged by its test answers; before ``finetune test`` has been run, and for a checkpoint alone,
    by the validation answers that the checkpoint keeps.

    Args:
        path: the file or folder.
        root: folder of the images, where the paths of the predictions lead nowhere.

    Raises:
        UsageError: nothing is there. DataError: no labelled answers are in it.
        CheckpointError: a file that is no checkpoint.
    """
    path = Path(path)
    if path.is_dir() and (folds := sorted(path.glob(FOLDS))):
        merged = merge_folds({str(fold.parents[1].name): _held_out(fold, root) for fold in folds})
        details = replace(merged.details, stage="val")
        return replace(merged, name=path.resolve().name, details=details)
    if path.is_dir():
        return _from_run(path, root)
    if not path.exists():
        raise UsageError(
            f"Expected a run folder, a .ckpt or a table of predictions, found nothing at {path}."
        )
    if path.suffix.lower() in ENDINGS:
        name = path.parent.name if path.stem == "predictions" and path.parent.name else path.stem
        return Source(name, read_evaluation(path), ReportDetails(root=root))
    return _held_out(path, root)


def load_sources(paths: list[str], *, root: Path | None = None) -> dict[str, Source]:
    """Several sources by name; equal names are told apart by the folder they lie in.

    Raises:
        UsageError: the same thing twice.
    """
    sources = [load_source(path, root=root) for path in paths]
    twice = {name for name, count in Counter(s.name for s in sources).items() if count > 1}
    names = [
        str(Path(path)) if source.name in twice else source.name
        for path, source in zip(paths, sources, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UsageError(f"Expected different things, found one twice in {', '.join(paths)}.")
    return dict(zip(names, sources, strict=True))


def comparable(sources: Mapping[str, Source]) -> dict[str, Judgement]:
    """The evaluations, with one spelling for each image where they name their roots differently."""
    evaluations = {name: source.evaluation for name, source in sources.items()}
    if len(evaluations) < 2 or in_common(evaluations):
        return evaluations
    return {
        name: with_paths(evaluation, _one_spelling(evaluation.paths, sources[name].details.root))
        for name, evaluation in evaluations.items()
    }


def in_common(evaluations: Mapping[str, Judgement]) -> bool:
    """Whether there are images that all have answered."""
    return bool(set[str].intersection(*(set(e.paths) for e in evaluations.values())))


def _one_spelling(paths: Sequence[str], root: Path | None) -> tuple[str, ...]:
    located = [(path, locate(path, root)) for path in paths]
    return tuple(os.path.realpath(at) if at.exists() else path for path, at in located)


def merge_folds(sources: Mapping[str, Source]) -> Source:
    """The held-out answers of all folds of a cross-validation as one evaluation.

    Every image is then judged by a classifier that has not been trained on it, which is what a
    search for wrong labels needs.

    Raises:
        UsageError: an image in two of them, or different classes.
    """
    first = next(iter(sources.values()))
    names = first.evaluation.class_names
    for name, source in sources.items():
        if source.evaluation.task != first.evaluation.task:
            raise UsageError(f"Expected folds of one task, found another in {name}.")
        if sorted(source.evaluation.class_names) != sorted(names):
            raise UsageError(f"Expected folds of the same classes, found others in {name}.")
    paths = [path for source in sources.values() for path in source.evaluation.paths]
    if len(set(paths)) < len(paths):
        raise UsageError(
            "Expected folds that hold out different images, found some held out twice; "
            "give each fit another data.fold."
        )
    evaluations = [with_names(source.evaluation, names) for source in sources.values()]
    thresholds = [evaluation.thresholds for evaluation in evaluations]
    evaluation = judge(
        first.evaluation.task,
        np.concatenate([e.targets for e in evaluations]),
        np.concatenate([e.outputs for e in evaluations]),
        names,
        paths,
        thresholds=mean_thresholds(thresholds, [1 / len(thresholds)] * len(thresholds)),
        chosen_here=any(evaluation.chosen_here for evaluation in evaluations),
        folds=np.repeat(np.arange(len(evaluations)), [len(e.paths) for e in evaluations]),
    )
    details = replace(first.details, stage="", learning_curves=None, class_counts=None, commands=())
    name = f"{len(sources)} folds: {', '.join(sources)}"
    return Source(name, evaluation, details, weights=first.weights)


def read_evaluation(path: Path, names: Sequence[str] | None = None) -> Judgement:
    """Judge a table of predictions; images without a label are left out.

    Args:
        path: of the table.
        names: of its run's checkpoint, which also knows the name of a column of numbers.

    Raises:
        DataError: no image has a label.
    """
    table = read_table(path)
    known = table.labelled
    if not known.any():
        raise DataError(
            f"{path}: expected labels to judge the answers by, found none; fill the column "
            "'label', or run `finetune test` on labelled images."
        )
    groups = numbered([group or None for group in table.groups])  # an empty cell stands alone
    return judge(
        table.task,
        table.labels[known],
        table.logits[known],
        names if names and table.task == REGRESSION else table.class_names,
        [image for image, has_label in zip(table.paths, known, strict=True) if has_label],
        thresholds=table.thresholds,
        half_width=table.half_width,
        groups=None if groups is None else groups[known],
    )


def _from_run(folder: Path, root: Path | None) -> Source:
    name = folder.resolve().name  # not "latest"
    weights = next((folder / c for c in CHECKPOINTS if (folder / c).is_file()), None)
    answers = next((folder / a for a in TEST_ANSWERS if (folder / a).is_file()), None)
    checkpoint = None if weights is None else read_checkpoint(weights, mmap=True)
    if answers is not None:
        names = None if checkpoint is None else checkpoint.class_names
        stage, evaluation = "test", read_evaluation(answers, names)
    elif checkpoint is not None:
        stage, evaluation = _stage(checkpoint), _of_checkpoint(checkpoint)
    else:
        raise DataError(
            f"Expected a run with predictions.csv or checkpoints/ in {folder}, found neither; "
            "give a folder that `finetune fit` or `finetune test` wrote."
        )
    columns = {} if checkpoint is None else {**_columns(checkpoint), **_times(folder)}
    details = read_details(folder, evaluation.task, root)
    again = how_to_test(weights, details) if weights is not None and stage == "test" else []
    details = replace(details, stage=stage, commands=[*details.commands, *again])
    return Source(name, evaluation, details, columns, weights)


def _held_out(path: Path, root: Path | None) -> Source:
    """A checkpoint by the validation answers that it keeps."""
    content = read_content(path, mmap=True)
    if content[ENTRY]["kind"] == "ensemble":
        raise DataError(
            f"Expected held-out outputs in {path}, found an ensemble, which keeps none; "
            f"`finetune test --ckpt_path {path} --data.root DIR` answers and writes its report."
        )
    checkpoint = as_checkpoint(content, path)
    evaluation = _of_checkpoint(checkpoint)
    columns = _columns(checkpoint)
    settings = path.absolute().parent.parent / "config.yaml"
    if root is None and path.parent.name == "checkpoints":
        root = root_of(settings)
    details = ReportDetails(_stage(checkpoint), root)
    return Source(path.stem, evaluation, details, columns, path)


def _of_checkpoint(checkpoint: Checkpoint) -> Judgement:
    val = checkpoint.details.get("val")
    if not val or len(val["labels"]) == 0:
        raise DataError(
            f"Expected {checkpoint.path} to keep validation answers, found none; run "
            f"`finetune test --ckpt_path {checkpoint.path} --data.root DIR` and report on its run."
        )
    noted = checkpoint.details.get("calibration")
    calibration = Calibration.from_dict(noted) if noted else None
    logits = val["logits"].double()
    thresholds = thresholds_of(checkpoint.task, checkpoint.details)
    return judge(
        checkpoint.task,
        val["labels"].numpy(),
        (logits if calibration is None else calibration.logits(logits)).numpy(),
        checkpoint.class_names,
        val["paths"],
        thresholds=thresholds if calibration is None else calibration.thresholds,
        chosen_here=checkpoint.details.get("thresholds") is None,
        half_width=None if calibration is None else calibration.half_width,
        groups=np.unique(val["ids"], return_inverse=True)[1] if val.get("ids") else None,
    )


def _stage(checkpoint: Checkpoint) -> str:
    return "val, out of fold" if out_of_fold_answers(checkpoint.details) else "val"


def _columns(checkpoint: Checkpoint) -> dict[str, str | float]:
    parameters = sum(t.numel() for t in checkpoint.state_dict.values() if t.is_floating_point())
    size = checkpoint.path.stat().st_size / 1e6
    licence = checkpoint.details.get("licence")
    return {
        "backbone": checkpoint.backbone,
        "parameters": parameters,
        "MB on disk": size,
        **({"licence of the weights": str(licence)} if licence else {}),
    }


def _times(folder: Path) -> dict[str, float]:
    """How long the fit took, and how long an answer takes, as far as ``metrics.json`` tells."""
    stages = read_metrics(folder)
    fit, test = stages.get("fit", {}), stages.get("test", {})
    times = {}
    if "seconds" in fit:
        times["fit minutes"] = float(fit["seconds"]) / 60
    if "ms_per_image" in test:
        times["ms an image"] = float(test["ms_per_image"])
    return times
