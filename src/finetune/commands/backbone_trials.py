"""One backbone after the other on a sample of the training images: costs, features, answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.combining.backbone_choice import Trial, named, nested_sample
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.dataset import ImageDataset
from finetune.networks.catalogue import under_licence
from finetune.networks.factory import build_network, network_spec
from finetune.networks.input_size import smaller_size
from finetune.networks.pretrained import weights_licence
from finetune.networks.staged import readable_stages
from finetune.networks.steps import stage_widths
from finetune.runtime import Runtime
from finetune.spec.labels import indexes
from finetune.training.classifier import ImageClassifier
from finetune.training.features.extract import StageReader, dataset_for, frozen_features
from finetune.training.features.speed import milliseconds_an_image
from finetune.training.features.store import FeatureStore
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.phases.probe import group_numbers, linear_head
from finetune.training.phases.stage_choice import answers_better, fitted_reading, is_affordable


class Named(NamedTuple):
    """A backbone, and where its weights are from."""

    backbone: str
    pretrained: bool | str

    @property
    def name(self) -> str:
        """As tables have it."""
        return named(*self)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backbone may cost; None: anything.

    Attributes:
        milliseconds: an image, on this machine.
        megabytes: of its weights in single precision.
        licence: of its weights, or ``commercial``.
        deadline: in ``time.monotonic()`` seconds.
    """

    milliseconds: float | None = None
    megabytes: float | None = None
    licence: str | None = None
    deadline: float | None = None

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()


@dataclass(slots=True)
class BackboneTrials:
    """Judges backbones by the training images of a folder, and says why others are left out.

    Attributes:
        data: that has found its images; no others than those for training are read.
        runtime: where networks compute.
        store: of the features, where a fit looks them up.
        limits: of the costs.
        seed: of the sample and of the folds.
        say: gets a line about each trial.
        at_once: how many are judged at the same time.
        left_out: the reasons, by name.
        seconds: that judging took an image, by name.
    """

    data: ImageFolderDataModule
    runtime: Runtime
    store: FeatureStore
    limits: Limits
    seed: int = 0
    say: Callable[[str], None] = print
    at_once: int = 1
    left_out: dict[str, str] = field(default_factory=dict, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _met: dict[str, tuple[ImageClassifier, Trial]] = field(default_factory=dict, init=False)
    _order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        images = self.data.images("train")
        labels = [indexes(image.label)[0] for image in images]
        self._order = nested_sample(labels, [image.id for image in images], seed=self.seed)

    def admits(self, candidate: Named) -> bool:
        """Whether licence and size are within the limits; nothing is fetched for it."""
        licence = weights_licence(*candidate)
        if self.limits.licence is not None and licence not in under_licence(self.limits.licence):
            return self._leave_out(candidate, f"licence {licence or 'not known'}")
        if self.limits.megabytes is not None:
            with torch.device("meta"):
                spec = network_spec(candidate.backbone)
                megabytes = megabytes_of(build_network(spec, len(self.data.class_names)))
            if megabytes > self.limits.megabytes:
                return self._leave_out(candidate, f"{megabytes:.1f} MB")
        return True

    def judge(self, candidate: Named, images: int) -> Trial | None:
        """Cross-validated answers to so many of the sample's images; None: it is left out."""
        if candidate.name not in self._met and not self._meet(candidate):
            return None
        classifier, blank = self._met[candidate.name]
        started = time.monotonic()
        dataset, workers = dataset_for(classifier, self.data, "train")
        chosen = [self.data.images("train")[index] for index in self._order[:images]]
        part = ImageDataset(chosen, dataset.transform, dataset.reader)
        # As a fit computes them, which looks for them in the store: with further ones of stages.
        stages = readable_stages(classifier.network)
        reader = StageReader.of(classifier, stages) if stages else classifier
        features = frozen_features(reader, part, store=self.store, num_workers=workers).tensor()
        width = classifier.network.get_classifier().in_features
        head, further = features.flatten(1)[:, :width], features.flatten(1)[:, width:]
        # Classes of which the sample has no image are none of the alternatives.
        _, labels = torch.unique(
            classifier.task.collate([image.label for image in chosen]), return_inverse=True
        )
        classes, groups = int(labels.max()) + 1, group_numbers([image.group for image in chosen])

        def fit(entering: Tensor) -> Probe:
            return fit_probe(
                entering,
                labels,
                classes,
                groups=groups,
                seed=self.seed,
                held_out=True,
                say=self.say,
            )

        probe = fit(head)
        if is_affordable(head, further, classes):
            widths = stage_widths(classifier.network)
            other = fitted_reading(fit, head, further, [widths[stage] for stage in stages]).probe
            if answers_better(other, probe, classifier.task, labels, groups):
                probe = other
        assert probe.held_out_logits is not None
        self.seconds[candidate.name] = (time.monotonic() - started) / images
        trial = replace(blank, logits=probe.held_out_logits, labels=labels)
        self.say(f"{candidate.name}: {images} images, {blank.milliseconds:.1f} ms each")
        return trial

    def affordable(self, trials: Sequence[Trial], images: int) -> bool:
        """Whether there is time for these on so many images."""
        needed = sum(
            max(trial.milliseconds / 1000, self.seconds[trial.name]) * (images - trial.images)
            for trial in trials
        )
        if needed / self.at_once <= self.limits.seconds_left:
            return True
        self.say(f"the budget is too short for {images} images: what is known decides")
        return False

    def _meet(self, candidate: Named) -> bool:
        """Build the network with its weights and time it, if it can be judged and is in time."""
        if self._met and self.limits.seconds_left <= 0:
            return self._leave_out(candidate, "the budget was over")
        backbone, pretrained = candidate
        smaller = smaller_size(backbone)  # as a fit sees images
        classifier = ImageClassifier(
            self.data.class_names,
            backbone=backbone,
            pretrained=pretrained,
            image_size=None if smaller is None else smaller.pixels,
        )
        self.runtime.place(classifier).eval()
        if linear_head(classifier.network) is None:
            return self._leave_out(candidate, "its final layer is not one linear layer on features")
        milliseconds = milliseconds_an_image(classifier)
        limit = self.limits.milliseconds
        if limit is not None and milliseconds > limit:
            return self._leave_out(candidate, f"{milliseconds:.1f} ms an image")
        trial = Trial(
            backbone,
            pretrained,
            milliseconds,
            megabytes_of(classifier.network),
            weights_licence(*candidate),
            torch.empty(0, 0),
            torch.empty(0),
        )
        self._met[candidate.name] = classifier, trial
        return True

    def _leave_out(self, candidate: Named, reason: str) -> bool:
        self.left_out[candidate.name] = reason
        self.say(f"{candidate.name} is left out: {reason}")
        return False


def megabytes_of(network: nn.Module) -> float:
    """Of its weights in single precision; also where these are not there yet."""
    return sum(4 * each.numel() for each in network.state_dict().values()) / 1e6
