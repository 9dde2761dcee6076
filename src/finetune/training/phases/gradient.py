"""The phases that learn by gradient steps: their callbacks, and what memory and time allow."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback

from finetune.errors import TrainingError
from finetune.runtime import Runtime
from finetune.spec.protocols import FitData, PhaseData
from finetune.training.best_epoch import BestEpoch
from finetune.training.callbacks import (
    L2SP,
    EpochSeed,
    SameBuffers,
    StopOnNonFiniteLoss,
    StopWhenNotBetter,
)
from finetune.training.checkpoint_io import use_atomic_checkpoints
from finetune.training.classifier import ImageClassifier
from finetune.training.model_selection import Candidate
from finetune.training.resume import ResumePoint, phase_file
from finetune.training.snapshots import Snapshots
from finetune.training.time_limit import Deadline, epochs_within


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """What a phase asks of its trainer; everything else is the caller's."""

    max_epochs: int
    callbacks: list[Callback]
    accumulate_grad_batches: int = 1
    phase: int = 0


@dataclass(slots=True)
class GradientPhases:
    """Runs one phase after the other, each with a trainer of its own.

    Attributes:
        classifier: is changed in place.
        datamodule: whose batch size is halved where memory does not suffice.
        folder: of the checkpoints.
        new_trainer: makes the trainer of one phase.
        monitor, patience, deadline, say: as in
            :class:`finetune.training.phases.phased_fit.PhasedFit`.
        trainer: of the last phase.
    """

    classifier: ImageClassifier
    datamodule: FitData
    folder: Path
    new_trainer: Callable[[TrainerSettings], Trainer]
    monitor: str
    patience: int
    deadline: float | None
    say: Callable[[str], None]
    trainer: Trainer | None = field(default=None, init=False)
    _penalty: L2SP | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.classifier.hparams["l2_sp"] > 0:
            self._penalty = L2SP(self.classifier.hparams["l2_sp"])

    def run(
        self,
        index: int,
        data: PhaseData,
        epochs: int,
        *,
        earlier: Candidate | None,
        seconds: float | None,
        at: ResumePoint,
    ) -> Candidate:
        """Fit once, in smaller batches where these are too large; the best epoch.

        Args:
            index: of the phase, from 0.
            data: the data module, or cached activations of its images.
            epochs: at most.
            earlier: the best of the phases before, which is to be bettered.
            seconds: that may be used; None: as long as it takes.
            at: where in the phase to go on.

        Raises:
            TrainingError: no epoch was validated, though images are held out.
            KeyboardInterrupt: the trainer was interrupted; ``last.ckpt`` is there.
        """
        start = {name: value.clone() for name, value in self.classifier.state_dict().items()}
        whole_batch, accumulate = self.datamodule.batch_size, 1
        while True:
            best = self._best_epoch(index, at)
            stopper = self._stopper(earlier)
            callbacks = [*self._guards(epochs), best, *stopper]
            settings = TrainerSettings(epochs, callbacks, accumulate, index)
            self.trainer = use_atomic_checkpoints(self.new_trainer(settings))
            try:
                if seconds is not None:
                    self._shorten(self.trainer, data, epochs, seconds)
                self.classifier.train()  # Lightning begins in whatever mode it finds
                with _expected_warnings_off():
                    self.trainer.fit(
                        self.classifier,
                        datamodule=cast(LightningDataModule, data),  # a class, not a protocol
                        ckpt_path=at.checkpoint,
                        weights_only=True,
                    )
                break
            except RuntimeError as error:
                if not _out_of_memory(error) or self.datamodule.batch_size == 1:
                    raise
                if Runtime().world_size > 1:  # the others are in the middle of a step
                    raise TrainingError(
                        f"Expected {self.datamodule.batch_size} images a step to fit the memory of "
                        f"{Runtime().world_size} processes, found that of process {Runtime().rank} "
                        f"too small; give --data.batch_size {self.datamodule.batch_size // 2}."
                    ) from error
                error.__traceback__ = None  # its frames hold the batch that did not fit
                accumulate = self._halve_batches(whole_batch)
                self.classifier.load_state_dict(start)
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        if any(each.stopped_epoch for each in stopper):
            self.say(f"stopped early: no better {self._watched} for {self.patience} epochs")
        if best.found is None:
            raise TrainingError(
                "Expected an epoch of the phase to be validated, found none; lower "
                "--trainer.check_val_every_n_epoch, or set no other limits on validation."
            )
        return best.found

    def pull_as_before(self, callbacks: Mapping[str, Any]) -> None:
        """Pull weights to where an earlier part of the fit, with these callbacks, pulled them."""
        if self._penalty is not None and self._penalty.state_key in callbacks:
            self._penalty.load_state_dict(callbacks[self._penalty.state_key])

    def found_before(self, at: ResumePoint) -> Candidate | None:
        """The best epoch so far of a phase that is resumed."""
        path = phase_file(self.folder, at.phase)
        return Candidate.read(path) if at.checkpoint and path.is_file() else None

    def _guards(self, epochs: int) -> list[Callback]:
        """What keeps a phase repeatable, alive, in time and near where it began."""
        guards: list[Callback] = [
            EpochSeed(self.datamodule.seed),
            StopOnNonFiniteLoss(),
            SameBuffers(),
        ]
        if self._penalty is not None:
            guards.insert(0, self._penalty)
        if self.deadline is not None:
            guards.append(Deadline(self.deadline))
        if self.classifier.cycles > 1:
            guards.append(Snapshots(self.folder, epochs // self.classifier.cycles))
        return guards

    def _best_epoch(self, index: int, at: ResumePoint) -> BestEpoch:
        return BestEpoch(
            phase_file(self.folder, index),
            monitor=self._watched,
            held_out=bool(self.datamodule.images("val")),
            found=self.found_before(at),
        )

    def _stopper(self, earlier: Candidate | None) -> list[StopWhenNotBetter]:
        if not self.patience or self.classifier.cycles > 1 or not self.datamodule.images("val"):
            return []
        return [
            StopWhenNotBetter(
                self._watched,
                higher_is_better=self.classifier.task.higher_is_better(self.monitor),
                patience=self.patience,
                best=None if earlier is None else earlier.figure(self._watched),
            )
        ]

    @property
    def _watched(self) -> str:
        """The figure by which epochs are told apart.

        What label smoothing does to the confidence is put right in the end, so it counts neither
        for nor against an epoch.
        """
        smoothed = self.classifier.setting("label_smoothing")
        return "val/nll_rescaled" if smoothed and self.monitor == "val/nll" else self.monitor

    def _shorten(self, trainer: Trainer, data: PhaseData, epochs: int, seconds: float) -> None:
        """Fewer epochs where the time does not suffice for all; the checkpoints say so."""
        runtime = Runtime()
        rehearsed = epochs_within(seconds, self.classifier, data, epochs, runtime.world_size)
        fitting = runtime.agree(lambda: rehearsed)
        if fitting < epochs and self.classifier.cycles == 1:
            self.say(f"there is time for {fitting} of {epochs} epochs")
            trainer.fit_loop.max_epochs = fitting
            self.classifier.details["fit"]["shortened"] = {"from": epochs, "to": fitting}

    def _halve_batches(self, whole_batch: int) -> int:
        """Half of the images a batch, and how many batches make a step as large as before."""
        self.datamodule.batch_size = max(1, self.datamodule.batch_size // 2)
        accumulate = -(-whole_batch // self.datamodule.batch_size)
        self.say(
            f"out of memory: again with batches of {self.datamodule.batch_size}, "
            f"{accumulate} of them a step"
        )
        return accumulate


@contextmanager
def _expected_warnings_off() -> Iterator[None]:
    """Frozen parts are in eval mode, and that is meant."""
    with warnings.catch_warnings():
        for message in (
            "Found .* module\\(s\\) in eval mode",
            "Be aware that when using `ckpt_path`",  # a run of an earlier version
            "Total length of `list` across ranks is zero",  # nothing is held out
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
