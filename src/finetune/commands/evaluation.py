"""``validate`` and ``test``: judge a checkpoint; figures and answers go to its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from finetune.commands.trainer import FinetuneCLI

Verb = Literal["validate", "test"]


def evaluate_checkpoint(verb: Verb, arguments: list[str]) -> int:
    """Run one pass over the held-out images and write ``metrics.json`` and the answers."""
    from finetune.commands.runs import write_metrics
    from finetune.commands.trainer import FinetuneCLI, quiet_libraries
    from finetune.training.metrics import figures_of

    quiet_libraries()
    cli = FinetuneCLI(verb, arguments)
    stage: Literal["val", "test"] = "val" if verb == "validate" else "test"
    run_trainer(cli, verb)
    logits, labels = cli.model.answers[stage]
    figures = figures_of(logits, labels)
    folder = folder_for(cli)
    write_metrics(folder, stage, figures)
    write_answers(cli, stage, folder)
    from finetune.commands.fit import summary

    print(summary(stage, figures, len(labels)))
    print(f"figures in {folder / 'metrics.json'}")
    return 0


def run_trainer(cli: FinetuneCLI, verb: Verb) -> None:
    """Load the checkpoint's weights and pass over the images once."""
    from lightning.pytorch.callbacks import RichProgressBar

    from finetune.commands.trainer import on_terminal

    assert cli.checkpoint is not None
    cli.model.load_weights(cli.checkpoint.state_dict, source=str(cli.checkpoint.path))
    cli.datamodule.setup(verb)
    trainer = cli.build_trainer(
        logger=False,
        callbacks=[RichProgressBar()] if on_terminal() else [],
        enable_progress_bar=on_terminal(),
        enable_checkpointing=False,
    )
    try:
        (trainer.validate if verb == "validate" else trainer.test)(
            cli.model, datamodule=cli.datamodule, verbose=False
        )
    except SystemExit as stop:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from stop


def folder_for(cli: FinetuneCLI) -> Path:
    """The checkpoint's own run folder, or a new one where it lies in none."""
    from finetune.commands.runs import new_run_folder, run_folder_of

    assert cli.checkpoint is not None
    own = run_folder_of(cli.checkpoint.path)
    return own or new_run_folder(Path(cli.config.runs), cli.config.name or cli.verb)


def write_answers(cli: FinetuneCLI, stage: Literal["val", "test"], folder: Path) -> None:
    """The probabilities of every image, for reports, comparisons and other tools."""
    from finetune.reporting.evaluation import evaluate
    from finetune.reporting.tables import write_predictions

    logits, labels = cli.model.answers[stage]
    paths = [image.path for image in cli.datamodule.images(stage)]
    evaluation = evaluate(labels, logits.double().softmax(dim=-1), cli.model.class_names, paths)
    path = folder / ("predictions.csv" if stage == "test" else "val_predictions.csv")
    beside = path.with_suffix(".part")
    write_predictions(beside, evaluation)
    beside.replace(path)
