"""What a run sends to Weights & Biases and other loggers, beyond the figures of every epoch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from finetune.documents import read_json
from finetune.errors import UsageError
from finetune.files import write_text
from finetune.spec.run_files import TRACKING
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import offsets
from finetune.tasks.task import Task
from finetune.training.checkpoints import Checkpoint, read_checkpoint
from finetune.training.thresholds import Thresholds, thresholds_of
from finetune.training.wandb_account import Destination, has_account, mode_here, permitted

# In a run folder: which Weights & Biases run is about it, so that a resumed fit and a test go on
# with that one.
TRACKED = "tracking.json"

WORST_PREDICTIONS = 32
# Pixels (H, W, 3) of an image by name; None if it has gone, for a table must not end a fit.
Thumbnail = Callable[[str], NDArray[np.uint8] | None]


def configured_loggers(
    configured: Any, folder: Path, named_entities: Collection[str] = ()
) -> list[Logger]:
    """The configured loggers, writing below the run folder.

    Args:
        configured: Lightning's ``logger`` setting: None, a truth value, a logger or several.
        folder: the run folder.
        named_entities: of Weights & Biases, that the user named as places to send to.

    Raises:
        UsageError: the settings or the folder send to an account that is not the user's.
    """
    loggers = [configured] if isinstance(configured, Logger) else configured
    loggers = list(loggers) if isinstance(loggers, Sequence) else []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _configure(logger, folder, named_entities)
        elif not isinstance(logger, CSVLogger | TensorBoardLogger):
            print(f"figures also go where {type(logger).__name__} sends them: see its settings")
    return loggers


def _configure(logger: WandbLogger, folder: Path, named_entities: Collection[str]) -> None:
    """Give a Weights & Biases logger its folder and a destination that is the user's own.

    It never asks for a key.
    """
    settings = logger._wandb_init  # the logger has no other door before its run starts
    if settings.get("settings") is not None:
        raise UsageError(
            "Expected the server and key of Weights & Biases in its environment variables, found "
            "`settings` of its logger, which may come from a file; set WANDB_BASE_URL instead."
        )
    if settings.get("dir") in (None, "."):
        settings["dir"] = str(folder)
        logger._save_dir = str(folder)
    earlier = tracked_run(folder)
    if earlier is not None and settings.get("id") is None:
        settings |= {"id": earlier.id, "resume": "allow"}
        logger._id = earlier.id
    offline = logger._offline or settings.get("mode") in ("offline", "dryrun")
    disabled = settings.get("mode") == "disabled"
    mode = mode_here("disabled" if disabled else "offline" if offline else "online")
    if mode == "online" and not has_account():
        print("No Weights & Biases key: logging offline; `wandb sync` sends it later.")
        mode = "offline"
    logger._offline = mode == "offline"
    settings["mode"] = mode
    if mode == "disabled":
        return
    wish = Destination(settings["project"], settings.get("entity"), settings.get("id"), mode)
    continues = earlier is not None and wish.id == earlier.id
    target = permitted(wish, named_entities, earlier=continues)
    settings["entity"] = target.entity
    print(f"Weights & Biases: {target}", flush=True)


def tracked_run(folder: Path) -> Destination | None:
    """The Weights & Biases run that a run folder says is about it; None without one.

    The folder may be a stranger's: ask :func:`permitted` before anything is sent there.

    Raises:
        UsageError: ``tracking.json`` is damaged.
    """
    path = folder / TRACKED
    if not path.is_file():
        return None
    kept = read_json(path, TRACKING)
    return Destination(kept["project"], kept.get("entity"), kept["id"], kept["mode"])


@contextmanager
def tracked(folder: Path) -> Iterator[None]:
    """End the Weights & Biases run that begins within, so that the next fit gets its own.

    A run of the caller's that is active before stays so.
    """
    before = _active_run()
    try:
        yield
    finally:
        if _active_run() is not before:
            finish_tracking(folder)


def _active_run() -> Any:
    wandb = sys.modules.get("wandb")
    return None if wandb is None else getattr(wandb, "run", None)


def finish_tracking(folder: Path) -> None:
    """End the active Weights & Biases run, which is about a fit.

    The run keeps the best checkpoint as its artifact, and the folder keeps which run it was.
    """
    wandb: Any = sys.modules.get("wandb")
    run = _active_run()
    if run is None:
        return
    if run.disabled:
        wandb.finish()
        return
    best = folder / "checkpoints" / "best.ckpt"
    if best.is_file():
        artifact = wandb.Artifact(f"{run.id}-best", type="model")
        artifact.add_file(str(best), policy="immutable")  # no second copy on this disk
        run.log_artifact(artifact)
    mode = "offline" if run.offline else "online"
    known = {"id": run.id, "project": run.project, "entity": run.entity or None, "mode": mode}
    wandb.finish()
    write_text(folder / TRACKED, json.dumps(known))


def track_best(loggers: Sequence[Logger], best: Path, thumbnail: Thumbnail) -> None:
    """Send what the best of a fit answers: figures to every logger, tables to Weights & Biases.

    A fit of the final layer alone has no epochs, so these are its only figures.

    Args:
        loggers: of the fit; the CSV log, which is about epochs, is left alone.
        best: the checkpoint, with its answers to the ``val`` images.
        thumbnail: of one of these images.
    """
    checkpoint = read_checkpoint(best, mmap=True)
    val: Mapping[str, Any] | None = checkpoint.details.get("val")
    if val is None or len(val["labels"]) == 0:
        return
    thresholds = thresholds_of(checkpoint.task, checkpoint.details)
    answers = checkpoint.task.figures(val["logits"], val["labels"], thresholds)
    figures = {f"best/{name}": value for name, value in answers.items()}
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_metrics(figures)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()  # the trainer has closed its file: this is a new one
        if isinstance(logger, WandbLogger) and checkpoint.task.has_choices:
            _send_tables(logger, checkpoint, val, thumbnail)


def _send_tables(
    logger: WandbLogger, checkpoint: Checkpoint, val: Mapping[str, Any], thumbnail: Thumbnail
) -> None:
    import wandb

    logits, labels, task = val["logits"], val["labels"], checkpoint.task
    names = list(checkpoint.class_names)
    thresholds = thresholds_of(task, checkpoint.details)
    tables = {
        "val/worst_predictions": worst_predictions(
            task, logits, labels, val["paths"], names, thresholds=thresholds, thumbnail=thumbnail
        )
    }
    if task == MULTICLASS:
        tables["val/confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=task.decide(logits).tolist(), class_names=names
        )
    logger.experiment.log(tables)


def worst_predictions(
    task: Task,
    logits: torch.Tensor,
    labels: torch.Tensor,
    paths: Sequence[str],
    class_names: Sequence[str],
    *,
    thresholds: Thresholds | None = None,
    thumbnail: Thumbnail,
) -> Any:
    """A table of the images with the highest loss, worst first, with thumbnails."""
    import wandb

    losses = task.losses(logits, labels)
    shift = 0 if thresholds is None else offsets(thresholds, len(class_names))
    answers = task.named(logits.double() - shift, class_names)
    confidences, truth = task.confidence(logits, thresholds), task.worded(labels, class_names)
    table = wandb.Table(columns=["image", "path", "label", "prediction", "confidence", "loss"])
    for index in losses.argsort(descending=True)[:WORST_PREDICTIONS].tolist():
        pixels = thumbnail(paths[index])
        table.add_data(
            None if pixels is None else wandb.Image(pixels),
            paths[index],
            truth[index],
            answers[index],
            float(confidences[index]),
            float(losses[index]),
        )
    return table
