"""What the rooms may ask of a task: the one protocol between them and what is predicted.

A new task is one file that has all of this, and one line in :mod:`finetune.tasks.known`. N images,
K outputs, M members; outputs are what a network says before any activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any, Literal, Protocol

from torch import Tensor

from finetune.spec.choices import Metric
from finetune.tasks.held_out_loss import Measure
from finetune.tasks.losses import ClassWeights
from finetune.tasks.units import AsTheyAre

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Loss(Protocol):
    """A training criterion, averaged over a batch; a module that moves with the classifier."""

    weight: Tensor | None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar of outputs ``(B, K)`` and targets, mixed ones included."""


class Task(Protocol):
    """One kind of prediction. It holds no tensors and no settings of a fit."""

    @property
    def name(self) -> str:
        """As checkpoints have it."""

    @property
    def deciding(self) -> str:
        """The figure that picks epochs and settles ties, the lower the better."""

    @property
    def rising(self) -> Set[str]:
        """The figures of which more is better."""

    @property
    def closed_form(self) -> Literal["multinomial", "binary", "ridge"]:
        """Which problem the final layer is, where it is fitted without gradient steps.

        One with as many alternatives as outputs, a binary one for each output, or least squares.
        """

    @property
    def has_choices(self) -> bool:
        """Whether outputs are logits of alternatives: of numbers there is no temperature or vote.

        Without it, :meth:`choices`, :meth:`outputs_of` and :meth:`confidence` refuse, and
        :meth:`rows` have one number each.
        """

    # Targets

    def checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of what is predicted, as they are.

        Raises:
            TrainingError: too few, or one of them twice.
        """

    def number_of_outputs(self, names: Sequence[str]) -> int:
        """K, for the names of what is predicted: one a name."""
        return len(names)

    def unit(self, outputs: int) -> AsTheyAre:
        """What turns a network's answers into outputs; its tensors are the classifier's."""
        return AsTheyAre()

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """The targets of some images, as the data's rooms keep them, as one tensor ``(N, ...)``."""

    def unexpected(self, targets: Tensor, images: int, outputs: int) -> str | None:
        """What is wrong with a file's targets for so many images; None: they are as they should."""

    def worded(self, targets: Tensor, names: Sequence[str]) -> list[str]:
        """Each of N targets as a manifest's cell has it."""

    def names_in(self, cell: str) -> list[str]:
        """The names that an image of such a cell counts for; empty where there are none."""

    def strata(self, targets: Tensor) -> list[int]:
        """A number for each of N targets; a split shares out evenly those of one number."""

    # Learning

    def loss(self, *, label_smoothing: float, focal_gamma: float) -> Loss:
        """The training criterion."""

    def class_weights(self, kind: ClassWeights, counts: Sequence[int]) -> Tensor | None:
        """The criterion's weight of each output, from training images a name; None: all alike."""

    def mixing(self, outputs: int, *, mixup_alpha: float, cutmix_alpha: float) -> Mixing | None:
        """From a batch to a mixed one, whose targets the criterion takes; None: as it is."""

    def distillation_loss(self, outputs: Tensor, taught: Tensor, *, temperature: float) -> Tensor:
        """How far outputs are from a teacher's probabilities ``(B, K)``; a scalar."""

    # Answers

    def probabilities(self, outputs: Tensor) -> Tensor:
        """``(..., K)`` in float32: what is shown, and what exports answer."""

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """``(..., K)`` in nats, in the outputs' precision."""

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Outputs ``(..., K)`` in float64 whose :meth:`probabilities` these are; always finite."""

    def decide(self, outputs: Tensor) -> Tensor:
        """What is named, in the form of targets."""

    def named(self, outputs: Tensor, names: Sequence[str]) -> list[str]:
        """The same in words, for each of N images."""
        return self.worded(self.decide(outputs), names)

    def confidence(self, outputs: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
        """Probability of what is named, ``(...)``, in the outputs' precision.

        Thresholds decide what that is, where given.
        """

    def thresholds(self, outputs: Tensor, targets: Tensor) -> list[float] | None:
        """Probabilities from which on each output is named, chosen on held-out images; or None.

        Whoever has thresholds subtracts their logits before :meth:`decide` and :meth:`named`.
        """
        return None

    # Judgement

    def figure_names(self, outputs: int) -> list[str]:
        """What :meth:`figures` tells of so many outputs."""

    def figures(
        self, outputs: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Figures of ``(N, K)``, in float64 on the CPU; thresholds decide, where given."""

    def val_figures(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The same of images that thresholds are chosen on: they flatter what these decide."""
        return self.figures(outputs, targets, self.thresholds(outputs, targets))

    def in_words(self, outputs: Tensor, targets: Tensor) -> str:
        """The two figures by which members are told apart, such as ``accuracy 0.9  nll 0.3``."""

    def higher_is_better(self, monitor: str) -> bool:
        """Whether a figure such as ``val/accuracy`` is meant to rise."""
        return monitor.split("/")[-1] in self.rising

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The plain loss of each image, ``(..., N)`` float64; :attr:`deciding` is their mean."""

    def held_out_loss(self, outputs: Tensor, targets: Tensor, metric: Metric) -> float:
        """How wrong ``(N, K)`` are by the measure that a choice shall lower."""

    def measure(self, metric: Metric) -> Measure:
        """The same measure of :meth:`rows`.

        Raises:
            UsageError: the task has none of that name.
        """
        return metric

    # Combining

    def mixture(self, member_outputs: Tensor, coefficients: Sequence[float]) -> Tensor:
        """Outputs ``(N, K)`` whose answer is the weighted mean of the members' ``(M, N, K)``.

        In float64, on the CPU; coefficients sum to 1.
        """

    def choices(self, outputs: Tensor) -> Tensor:
        """Outputs ``(..., K)`` as logits of choices, the alternatives last.

        Votes, entropies and temperatures are made of them.
        """

    def outputs_of(self, choices: Tensor) -> Tensor:
        """The inverse of :meth:`choices`."""

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """All that is known as plain choices: logits ``(..., R, D)`` and answers ``(R,)``.

        A temperature, coefficients and a selection of members are fitted to such rows, whatever
        the task. Of numbers a row is an answer ``(..., R, 1)``, and the true one is a float.
        """
