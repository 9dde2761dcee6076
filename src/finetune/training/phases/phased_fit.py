"""Runs a strategy: its phases one after the other, the best of them kept.

After every phase ``checkpoints/best.ckpt`` is the best so far by held-out NLL (or the figure that
was asked for), so fine-tuning never delivers a worse classifier than the probe it started from.
What a phase offers is its best epoch, or a point between that and the best so far. A phase that
does not clearly better it stays beside it as ``phase2.ckpt`` and so on, which an ensemble can use.
``checkpoints/last.ckpt`` is the end of the last epoch, from which a fit is resumed as if it had
never been disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning import Trainer

from finetune.errors import TrainingError, UsageError
from finetune.networks.final_layer import output_tensors
from finetune.networks.freezing import freeze, network_stages, split_at, stages_below
from finetune.runtime import Runtime
from finetune.spec.network import STAGES
from finetune.spec.protocols import FitData, PhaseData
from finetune.training.checkpoints import ENTRY, network_of, plain, read_content
from finetune.training.classifier import ImageClassifier
from finetune.training.features.activations import CachedActivations
from finetune.training.features.store import FeatureStore
from finetune.training.interpolation import answers_by_shares, best_between
from finetune.training.model_selection import Candidate, clearly_better
from finetune.training.phases.gradient import GradientPhases, TrainerSettings
from finetune.training.phases.probe import fit_final_layer, linear_head
from finetune.training.phases.refit import refit_on_all
from finetune.training.phases.stage_choice import let_read
from finetune.training.resume import START, ResumePoint, phase_file, resume_point_of
from finetune.training.snapshots import whole_cycles
from finetune.training.strategies import Phase, epochs_of, phases_of


@dataclass(slots=True)
class PhasedFit:
    """One fit of a classifier on a data module, by a resolved strategy.

    Attributes:
        classifier: is changed in place, and is the best of the fit in the end.
        datamodule: an ``ImageFolderDataModule`` that has found its images.
        folder: of the checkpoints.
        new_trainer: makes the trainer of one phase.
        strategy: any but ``auto``.
        epochs: of all phases together.
        monitor: the held-out figure that picks epochs and phases.
        patience: epochs without a better one after which a phase stops; 0: none stops.
        store: of the activations; None caches them in memory.
        deadline: in ``time.monotonic()`` seconds; no phase goes on beyond it.
        say: gets a line about each phase.
        found: the best so far, as ``best.ckpt`` holds it.
    """

    classifier: ImageClassifier
    datamodule: FitData
    folder: Path
    new_trainer: Callable[[TrainerSettings], Trainer]
    strategy: str
    epochs: int
    monitor: str = "val/nll"
    patience: int = 0
    store: FeatureStore | None = None
    deadline: float | None = None
    say: Callable[[str], None] = print
    found: Candidate | None = field(default=None, init=False)
    _kept: CachedActivations = field(init=False)
    _gradient_phases: GradientPhases = field(init=False)

    def __post_init__(self) -> None:
        self._kept = CachedActivations(self.classifier, self.datamodule, self.store, self.say)
        self._gradient_phases = GradientPhases(
            self.classifier,
            self.datamodule,
            self.folder,
            self.new_trainer,
            monitor=self.monitor,
            patience=self.patience,
            deadline=self.deadline,
            say=self.say,
        )

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return self.folder / "best.ckpt"

    @property
    def trainer(self) -> Trainer | None:
        """That of the last phase by gradient steps."""
        return self._gradient_phases.trainer

    def run(self, resume: Path | None = None) -> None:
        """Run the phases, all of them or those after a checkpoint, and load the best weights."""
        network = self.classifier.network
        phases = self._feasible(phases_of(self.strategy, list(network_stages(network))))
        if resume is None:
            images = self.datamodule.images("train")
            targets = self.classifier.task.collate([image.label for image in images])
            self.classifier.unit.learn(targets)
        place = START if resume is None else self._go_on_from(resume, len(phases))
        counts = epochs_of(phases, self.epochs)
        for index in range(place.phase, len(phases)):
            if index > 0 and Runtime().agree(lambda: self._remaining() == 0):
                self.say("time is up: the remaining phases are left out")
                break
            facts = {"strategy": self.strategy, "phase": index, "monitor": self.monitor}
            self.classifier.details["fit"] = facts
            if phases[index].kind == "probe":
                self._probe(index)
                continue
            epochs, share = counts[index], counts[index] / sum(counts[index:])
            if index == len(phases) - 1:
                epochs = self._in_cycles(epochs)
            self._train(index, phases[index], epochs, share, place.within(index))
        freeze(network, (), batch_norm=self.classifier.hparams["batchnorm"])
        if self.found is not None:
            self.classifier.load_weights(dict(self.found.state_dict), source=str(self.best))
            if phases[0].kind == "probe" and self.classifier.setting("refit"):
                self._refit(self.found)
            if self.found.outputs is not None:
                self.classifier.answers["val"] = self.found.outputs

    def _go_on_from(self, path: Path, phases: int) -> ResumePoint:
        content = read_content(path)
        place = resume_point_of(
            path, content, strategy=self.strategy, monitor=self.monitor, folder=self.folder
        )
        stages = network_of(content[ENTRY], content["hyper_parameters"]).arguments.get(STAGES)
        if stages is not None:
            let_read(self.classifier, stages)
        self.classifier.load_weights(content["state_dict"], source=str(path))
        self._gradient_phases.pull_as_before(content.get("callbacks", {}))
        if place.phase > 0:
            if not self.best.is_file():
                raise TrainingError(
                    f"Expected the best of the earlier phases beside {path}, found no "
                    f"{self.best.name}; copy it there, or start a new fit with "
                    f"--model.pretrained {path}."
                )
            self.found = Candidate.read(self.best)
            if place.phase < phases and "refitted" in self.found.facts:
                raise TrainingError(
                    f"Expected a fit that has phases left in {path}, found that its final layer "
                    "has learnt from the val images that would compare them; start a new fit."
                )
            if self.found.facts.get("phase", 0) > 0 and Runtime().is_main:
                # A fit that was killed in between has written the best, but not removed this.
                phase_file(self.folder, self.found.facts["phase"]).unlink(missing_ok=True)
        return place

    def _feasible(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """The phases, with gradient steps where the final layer is not a linear layer alone."""
        if phases[0].kind == "train" or linear_head(self.classifier.network) is not None:
            return phases
        head = Phase("train", "head", 1.0 if len(phases) == 1 else 0.25)
        rest = (replace(phase, share=phase.share * 0.75) for phase in phases[1:])
        return (head, *rest)

    def _probe(self, index: int) -> None:
        fitted = fit_final_layer(self._kept)
        # Fitted alike in each process, but for rounding.
        Runtime().equalise(self.classifier.network, parameters=True)
        self.classifier.details["fit"] |= {"done": True, "probe": fitted.details}
        self.found = Candidate.of(
            {
                "state_dict": self.classifier.state_dict(),
                "hyper_parameters": plain(dict(self.classifier.hparams)),
                ENTRY: self.classifier.entry(self.datamodule),
            }
        )
        if Runtime().is_main:
            self.found.write(self.best)
            self.found.write(self.folder / "last.ckpt")
        self.say(f"phase {index + 1}: {fitted}")

    def _refit(self, found: Candidate) -> None:
        """Where the closed form is what is delivered, let it learn from val images as well."""
        if found.facts["phase"] > 0 or "refitted" in found.facts:
            return
        if Runtime().agree(lambda: self._remaining() == 0):
            self.say("time is up: the final layer has not learnt from the val images")
            return
        refitted = refit_on_all(self._kept, found)
        if refitted is None:
            return
        self.found, fitted = refitted
        if Runtime().is_main:
            self.found.write(self.best)
        self.say(f"all labelled images learn, and val is out of fold: {fitted}")

    def _in_cycles(self, epochs: int) -> int:
        """The last phase's epochs, in equal cycles where snapshots are asked for."""
        snapshots = self.classifier.hparams["snapshots"]
        self.classifier.cycles = snapshots
        whole = whole_cycles(epochs, snapshots)
        if whole != epochs:
            self.say(f"{whole} epochs instead of {epochs}: {snapshots} equal cycles")
        return whole

    def _train(
        self, index: int, phase: Phase, epochs: int, time_share: float, at: ResumePoint
    ) -> None:
        """One phase by gradient steps, whole or from a checkpoint inside of it."""
        classifier, network = self.classifier, self.classifier.network
        frozen = stages_below(network, phase.boundary)
        freeze(network, frozen, batch_norm=classifier.hparams["batchnorm"])
        kept = self._kept.data_for(phase.boundary, epochs)
        classifier.upper = None if kept is None else split_at(network, phase.boundary).top
        network.to(memory_format=torch.channels_last)
        remaining = self._remaining()
        seconds = None if remaining is None or at.checkpoint else time_share * remaining
        if at.shortened and at.shortened["from"] == epochs:
            classifier.details["fit"]["shortened"] = at.shortened
            epochs = at.shortened["to"]
        what = f"{phase.boundary} and above" if frozen else "everything"
        how = "" if kept is None else f", on activations cached in {len(kept.views)} views"
        self.say(f"phase {index + 1}: {what} for {epochs} epochs{how}")
        device = classifier.device
        try:
            found = self._best_of_phase(index, kept or self.datamodule, epochs, seconds, at)
            # Lightning leaves it on the CPU, and in half precision where it learnt so.
            classifier.to(device, torch.float32)
            self._conclude(index, found, kept or self.datamodule)
        finally:
            classifier.upper = None
            network.to(memory_format=torch.contiguous_format)

    def _best_of_phase(
        self, index: int, data: PhaseData, epochs: int, seconds: float | None, at: ResumePoint
    ) -> Candidate:
        """Train what is left of a phase, which is nothing where it was killed before its end."""
        if epochs < at.epochs and not at.stopped:
            raise UsageError(
                f"Expected at least the {at.epochs} epochs of phase {index + 1} that are over, "
                f"found {epochs}; give a larger --trainer.max_epochs."
            )
        if at.stopped or epochs == at.epochs:
            before = self._gradient_phases.found_before(at)
            if before is not None:
                return before
        return self._gradient_phases.run(
            index, data, epochs, earlier=self.found, seconds=seconds, at=at
        )

    def _conclude(self, index: int, found: Candidate, data: PhaseData) -> None:
        """Put right what a phase has found; it becomes ``best.ckpt`` if it is better.

        Each checkpoint of a phase's end is written once, and says that this is done: a fit that is
        killed before it repeats all of this, and one killed after it nothing.
        """
        own, writes = phase_file(self.folder, index), Runtime().is_main
        smoothed = self.classifier.setting("label_smoothing")
        head = output_tensors(self.classifier.network) if smoothed else ()
        found = found.rescaled(head) if head else found
        if self.found is not None:
            found = self._look_between(self.found, found, data, head)
        found = found.but(done=True)
        # Like with like: a temperature fitted to the images that compare is worth something too.
        earlier = self.found.rescaled(head) if self.found is not None and head else self.found
        if earlier is None or clearly_better(found, earlier, self.monitor):
            self.found = found
            if writes:
                found.write(self.best)
                if own != self.best:
                    own.unlink(missing_ok=True)
        else:
            if writes:
                found.write(own)
            self.say(
                "the earlier phase stays: not clearly bettered on held-out images; "
                f"this one is kept in {own.name}"
            )

    def _look_between(
        self, earlier: Candidate, found: Candidate, data: PhaseData, head: Iterable[str]
    ) -> Candidate:
        """The best point between the earlier phases and what this one has found."""
        answered = 0 if found.outputs is None else len(found.outputs[1])
        # Where the trainer limits its batches, nobody has answered all of the images.
        if not answered or answered < len(self.datamodule.images("val")):
            return found
        if Runtime().agree(lambda: self._remaining() == 0):
            return found
        best = best_between(
            earlier,
            found,
            answers_by_shares(self.classifier, data.val_dataloader()),
            monitor=self.monitor,
            rescaled_head=head,
        )
        if best is not found:
            self.say(
                "better on held-out images than the end of this phase: "
                f"{best.facts['share']:.0%} of the way to it from the earlier one"
            )
        return best

    def _remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
