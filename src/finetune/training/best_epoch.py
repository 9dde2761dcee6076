"""Keeps the best epoch of a phase as a candidate, and the end of the last one to resume from."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from finetune.training.classifier import ImageClassifier
from finetune.training.model_selection import Candidate

# Between two writes: an accelerator's epoch may take less time than its files.
SECONDS_BETWEEN = 2.0


class BestEpoch(Checkpoint):
    """Writes the best epoch so far, then ``last.ckpt``: every few seconds, and where a phase ends.

    Lightning's own callback knows the best epoch by an absolute path in ``last.ckpt``: a run folder
    that was moved forgets it. Here the file of the best epoch says how good it is, so that what
    lies in the folder is all there is to know. It is written before ``last.ckpt``: a fit that is
    killed repeats the epochs since, and finds what it had found.

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
        self._unwritten = False  # whether the best so far is in memory alone
        self._written_at = -math.inf

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
        if not self._is_due(trainer):
            return
        self._write_best(trainer)
        assert isinstance(pl_module, ImageClassifier)
        facts = pl_module.details["fit"]
        # By patience, by a time limit, by a callback of the user's: nothing more is to be trained.
        pl_module.details["fit"] = {**facts, "stopped": trainer.should_stop}
        trainer.save_checkpoint(self.path.with_name("last.ckpt"))
        pl_module.details["fit"] = facts
        self._written_at = time.monotonic()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._write_best(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = ends or time.monotonic() - self._written_at >= SECONDS_BETWEEN
        return bool(trainer.strategy.broadcast(due))  # all processes write, or none

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
        self._unwritten = True

    def _write_best(self, trainer: Trainer) -> None:
        if self._unwritten and self.found is not None and trainer.is_global_zero:
            self.found.write(self.path)
        self._unwritten = False
