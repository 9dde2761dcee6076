"""What a run sends to Weights & Biases and other loggers, beyond the figures of every epoch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from finetune.evaluation.metrics import figures_of
from finetune.files import write_text
from finetune.training.checkpoints import Checkpoint, read_checkpoint

# In a run folder: which Weights & Biases run is about it, so that a resumed fit and a test go on
# with that one.
TRACKED = "tracking.json"

WORST_PREDICTIONS = 32
THUMBNAIL_PIXELS = 160


def configured_loggers(configured: Any, folder: Path) -> list[Logger]:
    """The configured loggers, writing below the run folder.

    Args:
        configured: Lightning's ``logger`` setting: None, a truth value, a logger or several.
        folder: the run folder.
    """
    loggers = [configured] if isinstance(configured, Logger) else configured
    loggers = list(loggers) if isinstance(loggers, Sequence) else []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _settle(logger, folder)
    return loggers


def _settle(logger: WandbLogger, folder: Path) -> None:
    """Give a Weights & Biases logger its folder, and never let it ask for a key."""
    settings = logger._wandb_init  # the logger has no other door before its run starts
    if settings.get("dir") in (None, "."):
        settings["dir"] = str(folder)
        logger._save_dir = str(folder)
    earlier = tracked_run(folder)
    if earlier is not None and settings.get("id") is None:
        settings |= {"id": earlier["id"], "resume": "allow"}
        logger._id = earlier["id"]
    if not logger._offline and not has_account():
        print("No Weights & Biases key: logging offline; `wandb sync` sends it later.")
        logger._offline = True
        settings["mode"] = "offline"


def has_account() -> bool:
    """Whether Weights & Biases would not ask for a key."""
    import os

    import wandb

    return bool(os.environ.get("WANDB_MODE") or wandb.api.api_key)


def tracked_run(folder: Path) -> dict[str, Any] | None:
    """Arguments of ``wandb.init`` that open a run folder's tracked run again; None without one."""
    path = folder / TRACKED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def finish_tracking(folder: Path) -> None:
    """End the Weights & Biases run, so that the next fit of this process gets its own.

    The run keeps the best checkpoint as its artifact, and the folder keeps which run it was.

    Args:
        folder: the run folder.
    """
    wandb = sys.modules.get("wandb")
    run = None if wandb is None else getattr(wandb, "run", None)
    if wandb is None or run is None:
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


def track_best(loggers: Sequence[Logger], best: Path, root: Path) -> None:
    """Send what the best of a fit answers: figures to every logger, tables to Weights & Biases.

    A fit of the final layer alone has no epochs, so these are its only figures.

    Args:
        loggers: of the fit; the CSV log, which is about epochs, is left alone.
        best: the checkpoint, with its answers to the ``val`` pictures.
        root: the folder of these pictures.
    """
    checkpoint = read_checkpoint(best, mmap=True)
    val: Mapping[str, Any] | None = checkpoint.details.get("val")
    if val is None or len(val["labels"]) == 0:
        return
    answers = figures_of(val["logits"], val["labels"])
    figures = {f"best/{name}": value for name, value in answers.items()}
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_metrics(figures)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()  # the trainer has closed its file: this is a new one
        if isinstance(logger, WandbLogger):
            _send_tables(logger, checkpoint, val, root)


def _send_tables(
    logger: WandbLogger, checkpoint: Checkpoint, val: Mapping[str, Any], root: Path
) -> None:
    import wandb

    logits, labels = val["logits"], val["labels"]
    names = list(checkpoint.class_names)
    logger.experiment.log(
        {
            "val/confusion_matrix": wandb.plot.confusion_matrix(
                y_true=labels.tolist(),
                preds=logits.argmax(dim=-1).tolist(),
                class_names=names,
            ),
            "val/worst_predictions": worst_predictions(logits, labels, val["paths"], names, root),
        }
    )


def worst_predictions(
    logits: torch.Tensor,
    labels: torch.Tensor,
    paths: Sequence[str],
    class_names: Sequence[str],
    root: Path,
) -> Any:
    """A table of the images with the highest loss, worst first, with thumbnails."""
    import wandb

    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    confidences, predictions = logits.softmax(dim=-1).max(dim=-1)
    table = wandb.Table(columns=["image", "path", "label", "prediction", "confidence", "loss"])
    for index in losses.argsort(descending=True)[:WORST_PREDICTIONS].tolist():
        table.add_data(
            _thumbnail(root / paths[index]),
            paths[index],
            class_names[int(labels[index])],
            class_names[int(predictions[index])],
            float(confidences[index]),
            float(losses[index]),
        )
    return table


def _thumbnail(path: Path) -> Any:
    """The upright picture, small; None if it has gone, for a table must not end a fit."""
    import wandb
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            thumbnail = ImageOps.exif_transpose(picture).convert("RGB")
    except OSError:
        return None
    thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return wandb.Image(thumbnail)
