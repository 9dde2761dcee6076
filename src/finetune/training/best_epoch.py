"""Keeps the best epoch of a phase as a candidate, and the end of the last one to resume from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from finetune.training.classifier import ImageClassifier
from finetune.training.model_selection import Candidate


class BestEpoch(Checkpoint):
    """Writes each epoch that betters those before it, then ``last.ckpt``.

    Lightning's own callback knows the best epoch by an absolute path in ``last.ckpt``: a run folder
    that was moved forgets it. Here the file of the best epoch says how good it is, so that what
    lies in the folder is all there is to know. It is written before ``last.ckpt``: a fit killed in
    between repeats the epoch.

    Args:
        path: of the best epoch's file, weights alone.
        monitor: the figure; the newest epoch counts as the best where nothing is held out.
        held_out: whether anything is.
        found: the best so far of a phase that is resumed.
    """

    def __init__(
        self, path: Path, *, monitor: str, held_out: bool, found: Candidate | None = None
    ) -> None:
        self.path = path
        self.monitor = monitor
        self.held_out = held_out
        self.found = found

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Where a phase ends it is validated, however seldom it was to be."""
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or self.monitor not in trainer.callback_metrics:
            return
        figure = float(trainer.callback_metrics[self.monitor])
        if self.found is None or self._betters(figure, self.found):
            self._keep(trainer, figure=figure)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.held_out:
            self._keep(trainer)
        assert isinstance(pl_module, ImageClassifier)
        facts = pl_module.details["fit"]
        # By patience, by a time limit, by a callback of the user's: nothing more is to be trained.
        pl_module.details["fit"] = {**facts, "stopped": trainer.should_stop}
        trainer.save_checkpoint(self.path.with_name("last.ckpt"))
        pl_module.details["fit"] = facts

    def _betters(self, figure: float, best: Candidate) -> bool:
        known = best.facts.get("figure")  # files of earlier versions do not say it
        known = best.figure(self.monitor) if known is None else known
        if known is None or math.isnan(known):
            return True
        return figure > known if best.task.higher_is_better(self.monitor) else figure < known

    def _keep(self, trainer: Trainer, **facts: float) -> None:
        # As a file would have it, so averages of the weights that callbacks keep are in it.
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self.found = Candidate.of(content).but(epoch=trainer.current_epoch + 1, **facts)
        if trainer.is_global_zero:
            self.found.write(self.path)
