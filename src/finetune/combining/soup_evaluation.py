"""Averaged weights judged on held-out images, one network for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.combining.batchnorm import reestimate_batchnorm
from finetune.combining.held_out import held_out_images
from finetune.combining.holdout_roles import of_role
from finetune.combining.ingredients import Ingredient
from finetune.errors import UsageError
from finetune.long_steps import told
from finetune.runtime import Runtime
from finetune.spec.choices import Metric, Share
from finetune.spec.images import Split
from finetune.spec.protocols import HeldOutData
from finetune.training.classifier import ImageClassifier
from finetune.training.held_out_pass import kept_answers

# Decoded images up to this size are cached between one judgement and the next.
KEPT_BYTES = 2**29

# A loss half-way that is this much above the worse end, in nats or of numbers as a share of it, is
# no common basin.
BARRIER = 0.1


@dataclass(frozen=True, slots=True)
class Score:
    """Figures on the picking images.

    Attributes:
        nll: in nats; of numbers the mean absolute error.
        said: the figures in words.
        loss: what decides, lower is better: the NLL, ``1 - accuracy`` or the Brier score.
        barrier: how much less ``nll`` the worse end of a line may have than the point half-way.
        images: how many were answered.
    """

    nll: float
    said: str
    loss: float
    barrier: float
    images: int

    @property
    def sort_key(self) -> tuple[float, float]:
        """Lower is better; equal losses are ordered by the NLL."""
        return self.loss, self.nll

    def no_worse_than(self, other: Score) -> bool:
        """Ties are accepted."""
        return self.loss <= other.loss


class WeightsEvaluator:
    """Judges state dicts of one architecture on the same held-out images.

    State dicts and answers are on the CPU; the network, and what it is shown, is on the device.

    Raises:
        UsageError: there are no held-out images.
    """

    def __init__(
        self,
        ingredient: Ingredient,
        datamodule: HeldOutData,
        metric: Metric,
        share: Share,
        split: Split,
        runtime: Runtime,
    ) -> None:
        described = ingredient.checkpoint
        self.classifier = ImageClassifier.like(described)
        self.device = runtime.place(self.classifier).device
        self.datamodule, self.metric, self.split = datamodule, metric, split
        self.images = held_out_images(described.task, datamodule, split, described.class_names)
        self.rows = of_role(
            self.images.ids, described.task.strata(self.images.labels), "pick", share
        )
        if not self.rows:
            raise UsageError(
                f"Expected held-out {split} images to judge by, found none; "
                "fit with a val_fraction above 0 and --model.refit false."
            )
        self.ids = [self.images.ids[row] for row in self.rows]
        side = described.preprocessing.image_size
        size = 4 * len(self.images.paths) * described.preprocessing.in_chans * side**2
        self._kept: list[Tensor] | None = [] if size <= KEPT_BYTES else None

    def evaluate(self, state_dict: Mapping[str, Tensor]) -> Score:
        """The score of these weights on the picking images."""
        logits, labels = self._logits(state_dict)[self.rows], self.images.labels[self.rows]
        task = self.classifier.task
        nll = task.held_out_loss(logits, labels, "nll")
        return Score(
            nll=nll,
            said=task.in_words(logits, labels),
            loss=task.held_out_loss(logits, labels, self.metric),
            barrier=BARRIER if task.has_choices else BARRIER * nll,
            images=len(self.rows),
        )

    def answers(self, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Logits, labels and paths of all held-out images, as a fit keeps them."""
        answers = self._logits(state_dict), self.images.labels
        return kept_answers(self.datamodule, (self.split,), answers, range(len(answers[1])))

    def reestimated(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same weights with batch-norm statistics of the training images."""
        self.classifier.load_state_dict(dict(state_dict))
        loader = self.datamodule.evaluation_dataloader(
            "train", preprocessings=(self.classifier.preprocessing,)
        )
        batches = told(loader, "Measuring batch norm", len(loader))
        reestimate_batchnorm(self.classifier, (views[0] for views, _ in batches))
        own = self.classifier.state_dict()
        return {name: tensor.to("cpu", copy=True) for name, tensor in own.items()}

    def _logits(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        self.classifier.load_state_dict(dict(state_dict))
        with torch.no_grad():
            return torch.cat([self.classifier(images).float().cpu() for images in self._batches()])

    def _batches(self) -> Iterator[Tensor]:
        if self._kept:
            yield from self._kept
            return
        loader = self.datamodule.evaluation_dataloader(
            self.split, preprocessings=(self.classifier.preprocessing,)
        )
        for views, _ in told(loader, "Judging weights", len(loader)):
            images = views[0].to(self.device)
            if self._kept is not None:
                self._kept.append(images)
            yield images


def warn_of_barrier(
    half_way: Score | None, first: Score, second: Score, names: tuple[str, str]
) -> None:
    """Warn when the loss half-way between two members lies above both ends.

    Fits from one starting point share a basin; fits from different initial heads or from scratch
    usually do not, and their average is worth nothing.
    """
    if half_way is None:
        return
    worse = max(first.nll, second.nll)
    if half_way.nll > worse + max(first.barrier, second.barrier):
        warnings.warn(
            f"Half-way between {names[0]} and {names[1]} the held-out loss is "
            f"{half_way.nll:.3f}, above {worse:.3f} at the worse end: they do not share a basin; "
            "combine them with `finetune ensemble`, or fit them from one common head.",
            stacklevel=4,
        )
