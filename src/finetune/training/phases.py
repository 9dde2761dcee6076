"""Runs a strategy: its phases one after the other, the best of them kept.

After every phase ``checkpoints/best.ckpt`` is the best so far by held-out NLL (or the figure that
was asked for), so fine-tuning never delivers a worse classifier than the probe it started from. A
phase that does not clearly better it stays beside it as ``phase2.ckpt`` and so on, which an
ensemble can use. ``checkpoints/last.ckpt`` is the end of the last epoch, from which a fit goes on
as if it had never been disturbed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from finetune.errors import NetworkError, TrainingError
from finetune.networks.freezing import freeze, network_stages, split_at, stages_below
from finetune.training.candidates import clearly_better, figure, higher_is_better, rescale
from finetune.training.checkpoints import read_checkpoint, read_content, write_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.feature_store import Activations, FeatureStore
from finetune.training.features import View, activation_shape, frozen_features, pictures_of
from finetune.training.keeping_alive import (
    L2SP,
    EpochSeed,
    StopOnNonFiniteLoss,
    StopWhenNotBetter,
)
from finetune.training.kept_data import KeptData
from finetune.training.losses import class_weights
from finetune.training.metrics import figures_of
from finetune.training.probe import Probe, fit_probe
from finetune.training.snapshots import Snapshots, whole_cycles
from finetune.training.strategies import Phase, epochs_of, phases_of
from finetune.training.time_limit import Deadline, epochs_within

FEW_A_CLASS = 20  # pictures; below, the final layer is fitted on random views as well


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """What a phase asks of its trainer; everything else is the caller's."""

    max_epochs: int
    callbacks: list[Callback]
    accumulate_grad_batches: int = 1


@dataclass(slots=True)
class PhasedFit:
    """One fit of a classifier on a data module, by a settled strategy.

    Attributes:
        classifier: is changed in place, and is the best of the fit in the end.
        datamodule: an ``ImageFolderDataModule`` that has found its pictures.
        folder: of the checkpoints.
        new_trainer: makes the trainer of one phase.
        strategy: any but ``auto``.
        epochs: of all phases together.
        monitor: the held-out figure that picks epochs and phases.
        patience: epochs without a better one after which a phase stops; 0: none stops.
        store: of the activations; None keeps them in memory.
        deadline: in ``time.monotonic()`` seconds; no phase goes on beyond it.
        say: gets a line about each phase.
    """

    classifier: ImageClassifier
    datamodule: Any
    folder: Path
    new_trainer: Callable[[TrainerSettings], Trainer]
    strategy: str
    epochs: int
    monitor: str = "val/nll"
    patience: int = 0
    store: FeatureStore | None = None
    deadline: float | None = None
    say: Callable[[str], None] = print
    trainer: Trainer | None = None
    _penalty: L2SP | None = field(default=None, init=False)

    def run(self, resume: Path | None = None) -> None:
        """Run the phases, all of them or those after a checkpoint, and load the best weights."""
        network = self.classifier.network
        stages = list(network_stages(network))
        phases = self._feasible(phases_of(self.strategy, stages))
        if self.classifier.hparams["l2_sp"] > 0:
            self._penalty = L2SP(self.classifier.hparams["l2_sp"])
        first, inside = 0, None
        if resume is not None:
            first, inside = self._resume(resume, len(phases))
        counts = epochs_of(phases, self.epochs)
        for index, epochs in enumerate(counts):
            if index < first:
                continue
            if index > 0 and self._remaining() == 0:
                self.say("time is up: the remaining phases are left out")
                break
            self.classifier.details["fit"] = {"strategy": self.strategy, "phase": index}
            if phases[index].kind == "probe":
                self._probe(index)
            else:
                share = epochs / sum(counts[index:])
                if index == len(phases) - 1:
                    epochs = self._in_cycles(epochs)
                inside = inside if index == first else None
                self._train(index, phases[index], epochs, share, inside)
        freeze(network, (), batch_norm=self.classifier.hparams["batchnorm"])
        if self.best.is_file():
            self._load(self.best)

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return self.folder / "best.ckpt"

    def _resume(self, path: Path, count: int) -> tuple[int, Path | None]:
        """Where to go on: the phase, and the checkpoint if it is inside of one."""
        checkpoint = read_checkpoint(path)
        progress = checkpoint.details.get("fit", {})
        if progress.get("strategy") != self.strategy or "phase" not in progress:
            raise TrainingError(
                f"Expected a checkpoint of a fit by {self.strategy}, found one by "
                f"{progress.get('strategy', 'other means')} in {path}; give its own settings."
            )
        if not progress.get("done") and "optimizer_states" not in read_content(path, mmap=True):
            raise TrainingError(
                f"Expected a checkpoint to go on from, found weights alone in {path}; give "
                "last.ckpt, or start from these with --model.pretrained."
            )
        self.classifier.load_weights(checkpoint.state_dict, source=str(path))
        if progress.get("done"):
            return min(int(progress["phase"]) + 1, count), None
        return int(progress["phase"]), path

    def _feasible(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """The phases, with gradient steps where the final layer is not a linear layer alone."""
        if phases[0].kind == "train" or linear_head(self.classifier.network) is not None:
            return phases
        head = Phase("train", "head", 1.0 if len(phases) == 1 else 0.25)
        rest = (replace(phase, share=phase.share * 0.75) for phase in phases[1:])
        return (head, *rest)

    # --- the final layer alone ---------------------------------------------------------------

    def _probe(self, index: int) -> None:
        started = time.monotonic()
        classifier = self.classifier
        layer = linear_head(classifier.network)
        assert layer is not None
        views = (None, *self._views(self._views_of_few()))
        features = [self._activations("train", "head", view).tensor() for view in views]
        labels = self._labels("train")
        weights, count = self._sample_weights(labels), len(views)
        probe = fit_probe(
            torch.cat(features),
            labels.repeat(count),
            len(classifier.class_names),
            sample_weights=None if weights is None else weights.repeat(count),
            groups=_group_numbers(self.datamodule.images("train")).repeat(count),
            seed=self.datamodule.seed,
        )
        with torch.no_grad():
            layer.weight.copy_(probe.weight)
            layer.bias.copy_(probe.bias)
        figures = self._judge_probe()
        classifier.details["fit"] |= {"done": True, "probe": _about(probe)}
        self._write(self.best)
        self._write(self.folder / "last.ckpt")
        held_out = (
            ""
            if figures is None
            else (f", val accuracy {figures['accuracy']:.3f}, val nll {figures['nll']:.3f}")
        )
        seen = f" in {count} views" if count > 1 else ""
        self.say(
            f"phase {index + 1}: final layer fitted on {len(labels)} pictures{seen} in "
            f"{time.monotonic() - started:.1f} s (penalty {probe.l2:.3g}){held_out}"
        )

    def _views_of_few(self) -> int:
        """Random views for the final layer: where pictures are few, they show what does not matter.

        With 5 flowers a class they gained 2 to 4 points; the more pictures, the less, and each view
        costs as much as the whole probe.
        """
        few = FEW_A_CLASS * len(self.classifier.class_names)
        return self.classifier.hparams["views"] if len(self.datamodule.images("train")) < few else 0

    def _judge_probe(self) -> dict[str, float] | None:
        if not self.datamodule.images("val"):
            return None
        features = self._activations("val", "head").tensor()
        layer = linear_head(self.classifier.network)
        assert layer is not None
        with torch.no_grad():
            logits = layer(features.to(layer.weight.device)).float().cpu()
        labels = self._labels("val")
        self.classifier.answers["val"] = logits, labels
        return figures_of(logits, labels)

    def _sample_weights(self, labels: Tensor) -> Tensor | None:
        drawn = self.datamodule.draw_weights
        if drawn is not None:
            return drawn * len(drawn) / drawn.sum()
        counts = list(self.datamodule.class_counts("train").values())
        weights = class_weights(self.classifier.hparams["class_weights"], counts)
        return None if weights is None else weights[labels]

    # --- gradient steps ----------------------------------------------------------------------

    def _in_cycles(self, epochs: int) -> int:
        """The last phase's epochs, in equal cycles where snapshots are asked for."""
        snapshots = self.classifier.hparams["snapshots"]
        self.classifier.cycles = snapshots
        whole = whole_cycles(epochs, snapshots)
        if whole != epochs:
            self.say(f"{whole} epochs instead of {epochs}: {snapshots} equal cycles")
        return whole

    def _train(
        self, index: int, phase: Phase, epochs: int, time_share: float, inside: Path | None
    ) -> None:
        classifier, network = self.classifier, self.classifier.network
        batch_norm = classifier.hparams["batchnorm"]
        freeze(network, stages_below(network, phase.boundary), batch_norm=batch_norm)
        kept = self._kept(phase.boundary, epochs)
        classifier.upper = None if kept is None else split_at(network, phase.boundary).top
        network.to(memory_format=torch.channels_last)
        data = kept or self.datamodule
        remaining = self._remaining()
        seconds = None if remaining is None or inside is not None else time_share * remaining
        what = (
            "everything"
            if phase.boundary == next(iter(network_stages(network)))
            else (f"{phase.boundary} and above")
        )
        how = "" if kept is None else f", on activations kept in {len(kept.views)} views"
        self.say(f"phase {index + 1}: {what} for {epochs} epochs{how}")
        try:
            self._fit(index, data, epochs, seconds, inside)
        finally:
            classifier.upper = None
            network.to(memory_format=torch.contiguous_format)

    def _fit(
        self, index: int, data: Any, epochs: int, seconds: float | None, inside: Path | None
    ) -> None:
        start = {name: value.clone() for name, value in self.classifier.state_dict().items()}
        whole_batch, accumulate = self.datamodule.batch_size, 1
        while True:
            best, last = self._checkpoints(index)
            callbacks = [EpochSeed(self.datamodule.seed), StopOnNonFiniteLoss(), best, last]
            stopper = self._stopper()
            callbacks += stopper
            if self.deadline is not None:
                callbacks.append(Deadline(self.deadline))
            if self.classifier.cycles > 1:
                callbacks.append(Snapshots(self.folder, epochs // self.classifier.cycles))
            if self._penalty is not None:
                callbacks.insert(0, self._penalty)
            settings = TrainerSettings(epochs, callbacks, accumulate)
            self.trainer = self.new_trainer(settings)
            try:
                if seconds is not None and self.trainer.world_size == 1:
                    self._shorten(self.trainer, data, epochs, seconds)
                self.classifier.train()  # Lightning begins in whatever mode it finds
                with _expected_warnings_off():
                    self.trainer.fit(
                        self.classifier, datamodule=data, ckpt_path=inside, weights_only=True
                    )
                break
            except RuntimeError as error:
                if not _out_of_memory(error) or self.datamodule.batch_size == 1:
                    raise
                error.__traceback__ = None  # its frames hold the batch that did not fit
                self.datamodule.batch_size = max(1, self.datamodule.batch_size // 2)
                accumulate = -(-whole_batch // self.datamodule.batch_size)
                self.say(
                    f"out of memory: again with batches of {self.datamodule.batch_size}, "
                    f"{accumulate} of them a step"
                )
                self.classifier.load_state_dict(start)
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        if any(each.stopped_epoch for each in stopper):
            self.say(f"stopped early: nothing better for {self.patience} epochs")
        self._keep_better(Path(best.best_model_path))

    def _shorten(self, trainer: Trainer, data: Any, epochs: int, seconds: float) -> None:
        """Fewer epochs where the time does not suffice for all."""
        fitting = epochs_within(seconds, self.classifier, data, epochs)
        if fitting < epochs and self.classifier.cycles == 1:
            self.say(f"there is time for {fitting} of {epochs} epochs")
            trainer.fit_loop.max_epochs = fitting

    @property
    def _watched(self) -> str:
        """The figure by which epochs are told apart.

        What label smoothing does to the confidence is put right in the end, so it counts neither
        for nor against an epoch.
        """
        smoothed = self.classifier.setting("label_smoothing")
        return "val/nll_rescaled" if smoothed and self.monitor == "val/nll" else self.monitor

    def _stopper(self) -> list[StopWhenNotBetter]:
        if not self.patience or self.classifier.cycles > 1 or not self.datamodule.images("val"):
            return []
        return [
            StopWhenNotBetter(
                self._watched,
                higher_is_better=higher_is_better(self.monitor),
                patience=self.patience,
                best=figure(self.best, self.monitor) if self.best.is_file() else None,
            )
        ]

    def _checkpoints(self, index: int) -> tuple[ModelCheckpoint, ModelCheckpoint]:
        """Two callbacks: Lightning's save_last writes only when there is a new best."""
        has_val = bool(self.datamodule.images("val"))
        best = ModelCheckpoint(
            dirpath=self.folder,
            filename="best" if index == 0 else f"phase{index + 1}",
            monitor=self._watched if has_val else None,
            mode="max" if higher_is_better(self.monitor) else "min",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        last = ModelCheckpoint(
            dirpath=self.folder,
            filename="last",
            every_n_epochs=1,
            monitor="epoch" if has_val else "step",  # a monitor of its own tells the two apart
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        return best, last

    def _keep_better(self, found: Path) -> None:
        """Make the phase's best epoch ``best.ckpt`` if it is better than what is there."""
        assert self.trainer is not None
        if self.trainer.is_global_zero and found.is_file():
            if self.classifier.setting("label_smoothing"):
                rescale(found, network_stages(self.classifier.network)["head"])
            if found.absolute() != self.best.absolute():
                if clearly_better(found, self.best, self.monitor):
                    found.replace(self.best)
                else:
                    self.say(
                        "the earlier phase stays: not clearly bettered on held-out pictures; "
                        f"this one is kept in {found.name}"
                    )
        self.trainer.strategy.barrier()

    # --- activations -------------------------------------------------------------------------

    def _kept(self, boundary: str, epochs: int) -> KeptData | None:
        """Kept activations for the phase, or None where pictures have to run live."""
        network = self.classifier.network
        if not stages_below(network, boundary) or self.classifier.mix is not None:
            return None
        try:
            split_at(network, boundary)
        except NetworkError:
            return None
        # As many passes over the frozen part as there are views: never more than live epochs.
        views = self._views(min(self.classifier.hparams["views"], epochs - 1))
        pictures = (len(views) + 1) * len(self.datamodule.images("train"))
        pictures += len(self.datamodule.images("val"))
        room = self.store or FeatureStore()
        if not room.fits(pictures, activation_shape(self.classifier, boundary)):
            self.say("the activations would take too much room: pictures run live")
            return None
        val = self._activations("val", boundary) if self.datamodule.images("val") else None
        train = [self._activations("train", boundary, view) for view in (None, *views)]
        return KeptData(self.datamodule, train, val)

    def _views(self, count: int) -> list[View]:
        """Random views of the split's seed: fits that differ in their training seed share them."""
        if self.datamodule.augmentation == "none":
            return []
        seed = self.datamodule.split_settings.seed
        return [View(number, self.datamodule.augmentation, seed) for number in range(count)]

    def _activations(self, split: str, boundary: str, view: View | None = None) -> Activations:
        pictures, workers = pictures_of(self.classifier, self.datamodule, split, view)
        return frozen_features(
            self.classifier,
            pictures,
            boundary=boundary,
            view=view,
            store=self.store,
            num_workers=workers,
        )

    def _labels(self, split: str) -> Tensor:
        return torch.tensor([image.label for image in self.datamodule.images(split)])

    # --- files and time ----------------------------------------------------------------------

    def _write(self, path: Path) -> None:
        write_checkpoint(
            path,
            state_dict=self.classifier.state_dict(),
            hyper_parameters=dict(self.classifier.hparams),
            entry=self.classifier.entry(self.datamodule),
        )

    def _load(self, path: Path) -> None:
        checkpoint = read_checkpoint(path)
        self.classifier.load_weights(checkpoint.state_dict, source=str(path))
        val = checkpoint.details.get("val")
        if val is not None:
            self.classifier.answers["val"] = val["logits"], val["labels"]

    def _remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def linear_head(network: Any) -> nn.Linear | None:
    """The final layer, where it is a linear layer with a bias at which the network can be cut."""
    layer = network.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return None
    try:
        split_at(network, "head")
    except NetworkError:
        return None
    return layer


def _group_numbers(images: Any) -> Tensor:
    """One number a group; a picture without one is a group of its own."""
    names = [image.group or f"\0{number}" for number, image in enumerate(images)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


def _about(probe: Probe) -> dict[str, Any]:
    return {"l2": probe.l2, "held_out_nll": {f"{k:.4g}": v for k, v in probe.held_out_nll.items()}}


@contextmanager
def _expected_warnings_off() -> Iterator[None]:
    """Frozen parts are in eval mode, and the folder holds earlier phases: both are meant."""
    with warnings.catch_warnings():
        for message in (
            "Found .* module\\(s\\) in eval mode",
            "Checkpoint directory .* exists and is not empty",
            "The dirpath has changed",
            "Total length of `list` across ranks is zero",  # nothing is held out
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
