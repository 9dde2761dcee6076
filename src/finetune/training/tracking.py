"""What a run sends to Weights & Biases and other loggers, beyond the figures of every epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from typing_extensions import override

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
    if not logger._offline and not _has_account():
        print("No Weights & Biases key: logging offline; `wandb sync` sends it later.")
        logger._offline = True
        settings["mode"] = "offline"


def _has_account() -> bool:
    import os

    import wandb

    return bool(os.environ.get("WANDB_MODE") or wandb.api.api_key)


def finish_tracking(best: Path | None = None) -> None:
    """End the Weights & Biases run, so that the next fit of this process gets its own.

    Args:
        best: a finished checkpoint that the run keeps as its artifact.
    """
    wandb = sys.modules.get("wandb")
    run = None if wandb is None else getattr(wandb, "run", None)
    if wandb is None or run is None:
        return
    if best is not None and best.is_file():
        artifact = wandb.Artifact(f"{run.id}-best", type="model")
        artifact.add_file(str(best), policy="immutable")  # no second copy on this disk
        run.log_artifact(artifact)
    wandb.finish()


class TrackedTables(Callback):
    """Send confusion matrix and worst predictions with pictures.

    Does nothing without a :class:`WandbLogger`; runs after the last epoch of a phase.
    """

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                self._send(logger, trainer, pl_module)

    def _send(self, logger: WandbLogger, trainer: Trainer, classifier: Any) -> None:
        import wandb

        run = logger.experiment
        if "val" in classifier.answers:
            logits, labels = classifier.answers["val"]
            images = trainer.datamodule.images("val")  # type: ignore[attr-defined]
            names = list(classifier.class_names)
            run.log(
                {
                    "val/confusion_matrix": wandb.plot.confusion_matrix(
                        y_true=labels.tolist(),
                        preds=logits.argmax(dim=-1).tolist(),
                        class_names=names,
                    ),
                    "val/worst_predictions": worst_predictions(
                        logits, labels, [image.path for image in images], names
                    ),
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
