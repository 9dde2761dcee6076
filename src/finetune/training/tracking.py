"""What a run sends to Weights & Biases and other loggers, beyond the figures of every epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from finetune.training.metrics import figures_of

WORST_PREDICTIONS = 32
THUMBNAIL_PIXELS = 160


def with_csv_logger(configured: Any, folder: Path) -> list[Logger]:
    """The configured loggers, writing below the run folder, and a CSV log in every case.

    Args:
        configured: Lightning's ``logger`` setting: None, a truth value, a logger or several.
        folder: the run folder; ``metrics.csv`` lies in it.
    """
    loggers = [configured] if isinstance(configured, Logger) else configured
    loggers = list(loggers) if isinstance(loggers, Sequence) else []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _settle(logger, folder)
    csv_logger = CSVLogger(folder, name="", version="")
    _ = csv_logger.experiment  # opened while the folder is empty: later it would warn of old logs
    return [csv_logger, *loggers]


def _settle(logger: WandbLogger, folder: Path) -> None:
    """Give a Weights & Biases logger its folder, and never let it ask for a key."""
    settings = logger._wandb_init  # the logger has no other door before its run starts
    if settings.get("dir") in (None, "."):
        settings["dir"] = str(folder)
        logger._save_dir = str(folder)
    if not logger._offline and not has_account():
        print("No Weights & Biases key: logging offline; `wandb sync` sends it later.")
        logger._offline = True
        settings["mode"] = "offline"


def has_account() -> bool:
    """Whether Weights & Biases would not ask for a key."""
    import os

    import wandb

    return bool(os.environ.get("WANDB_MODE") or wandb.api.api_key)


def finish_tracking(best: Path | None = None) -> dict[str, Any] | None:
    """End the Weights & Biases run, so that the next fit of this process gets its own.

    Args:
        best: a finished checkpoint that the run keeps as its artifact.

    Returns:
        Arguments of ``wandb.init`` that open the run again; None where there was none.
    """
    wandb = sys.modules.get("wandb")
    run = None if wandb is None else getattr(wandb, "run", None)
    if wandb is None or run is None:
        return None
    if best is not None and best.is_file():
        artifact = wandb.Artifact(f"{run.id}-best", type="model")
        artifact.add_file(str(best), policy="immutable")  # no second copy on this disk
        run.log_artifact(artifact)
    mode = "offline" if run.offline else "online"
    known = {"id": run.id, "project": run.project, "entity": run.entity or None, "mode": mode}
    wandb.finish()
    return known


def track_best(loggers: Sequence[Logger], classifier: Any, datamodule: Any) -> None:
    """Send what the best of a fit answers: figures to every logger, tables to Weights & Biases.

    A fit of the final layer alone has no epochs, so these are its only figures.

    Args:
        loggers: of the fit; the CSV log, which is about epochs, is left alone.
        classifier: with the best weights and their answers.
        datamodule: whose ``val`` pictures they are about.
    """
    if "val" not in classifier.answers:
        return
    logits, labels = classifier.answers["val"]
    figures = {f"best/{name}": value for name, value in figures_of(logits, labels).items()}
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_metrics(figures)
        if isinstance(logger, WandbLogger):
            _send_tables(logger, classifier, datamodule)


def _send_tables(logger: WandbLogger, classifier: Any, datamodule: Any) -> None:
    import wandb

    logits, labels = classifier.answers["val"]
    names = list(classifier.class_names)
    paths = [image.path for image in datamodule.images("val")]
    logger.experiment.log(
        {
            "val/confusion_matrix": wandb.plot.confusion_matrix(
                y_true=labels.tolist(),
                preds=logits.argmax(dim=-1).tolist(),
                class_names=names,
            ),
            "val/worst_predictions": worst_predictions(logits, labels, paths, names),
        }
    )


def worst_predictions(
    logits: torch.Tensor, labels: torch.Tensor, paths: Sequence[Path], class_names: Sequence[str]
) -> Any:
    """A table of the images with the highest loss, worst first, with thumbnails."""
    import wandb
    from PIL import Image

    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    confidences, predictions = logits.softmax(dim=-1).max(dim=-1)
    table = wandb.Table(columns=["image", "path", "label", "prediction", "confidence", "loss"])
    for index in losses.argsort(descending=True)[:WORST_PREDICTIONS].tolist():
        with Image.open(paths[index]) as picture:
            thumbnail = picture.convert("RGB")
            thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            shown = wandb.Image(thumbnail)
        table.add_data(
            shown,
            str(paths[index]),
            class_names[int(labels[index])],
            class_names[int(predictions[index])],
            float(confidences[index]),
            float(losses[index]),
        )
    return table
