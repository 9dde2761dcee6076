"""``finetune fit``: a folder of pictures in, a run folder with a fine-tuned classifier out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback

    from finetune.commands.trainer import FinetuneCLI


def main(arguments: list[str]) -> int:
    """Fit one classifier; the run folder stays only if there is something to keep."""
    from finetune.commands.runs import new_run_folder
    from finetune.commands.trainer import FinetuneCLI, quiet_libraries

    quiet_libraries()
    cli = FinetuneCLI("fit", arguments)
    cli.datamodule.setup("fit")
    folder = new_run_folder(Path(cli.config.runs), cli.config.name or _name(cli.model.backbone))
    try:
        fit(cli, folder)
    except BaseException:
        if not any((folder / "checkpoints").glob("*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return 0


def _name(backbone: str) -> str:
    return backbone.replace(":", "-").replace("/", "-").strip("-.")


def fit(cli: FinetuneCLI, folder: Path) -> None:
    """Train into the run folder, then put the best epoch's figures beside it."""
    from finetune.commands.runs import link_latest, write_text
    from finetune.training.tracking import finish_tracking

    trainer = build_trainer(cli, folder)
    if trainer.is_global_zero:
        write_text(folder / "config.yaml", cli.config_yaml())
        cli.datamodule.write_manifest(folder / "split.csv")
        link_latest(folder)
    try:
        trainer.fit(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True
        )
    except SystemExit as stop:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from stop
    finally:
        finish_tracking()
    if trainer.is_global_zero:
        conclude(folder)


def build_trainer(cli: FinetuneCLI, folder: Path) -> Trainer:
    """Lightning's trainer with our checkpoints, loggers and progress in the run folder."""
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar

    from finetune.commands.trainer import on_terminal
    from finetune.training.progress import EpochLine
    from finetune.training.tracking import TrackedTables, with_csv_logger

    settings = cli.config_init["trainer"].as_dict()
    loggers = with_csv_logger(settings["logger"], folder)
    monitor = cli.config.monitor
    if not cli.datamodule.images("val"):
        monitor = None  # nothing to choose by: the last epoch is the best known
    best = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="best",
        monitor=monitor,
        mode="max" if monitor and monitor.split("/")[-1] in HIGHER_IS_BETTER else "min",
        save_last=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    ours: list[Callback] = [best, LearningRateMonitor("epoch"), TrackedTables()]
    watched = on_terminal() and settings["enable_progress_bar"] is not False
    ours.append(RichProgressBar() if watched else EpochLine())
    return cli.build_trainer(
        logger=loggers,
        callbacks=[*(settings["callbacks"] or []), *ours],
        default_root_dir=str(folder),
        enable_progress_bar=watched,
    )


HIGHER_IS_BETTER = {"accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy"}


def conclude(folder: Path) -> None:
    """Write the best epoch's figures and say what lies where."""
    from finetune.commands.runs import contents, write_metrics
    from finetune.training.checkpoints import read_checkpoint
    from finetune.training.metrics import figures_of

    best = folder / "checkpoints" / "best.ckpt"
    val: dict[str, Any] | None = read_checkpoint(best).details.get("val")
    if val is not None and len(val["labels"]):
        figures = figures_of(val["logits"], val["labels"])
        write_metrics(folder, "val", figures)
        print(summary("val", figures, len(val["labels"])))
    print(f"\n{folder}:")
    for path, meaning in contents(folder):
        print(f"  {path.relative_to(folder)!s:<22}  {meaning}")
    print(f"\nnext: finetune predict {best} PICTURE_OR_FOLDER...")


def summary(stage: str, figures: dict[str, float], images: int) -> str:
    """One line: accuracy with its 95 % interval, balanced accuracy, NLL, calibration error."""
    from finetune.training.intervals import wilson_interval

    low, high = wilson_interval(round(figures["accuracy"] * images), images)
    return (
        f"{stage}: accuracy {figures['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
        f"{images} images), balanced accuracy {figures['balanced_accuracy']:.3f}, "
        f"NLL {figures['nll']:.3f}, calibration error {figures['calibration_error']:.3f}"
    )
