"""One class an image: targets int64 ``(N,)``, outputs the logits ``(N, C)`` of C classes.

Log probabilities are logits too. So no answer is too sure to be told from certainty.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from finetune.errors import TrainingError
from finetune.tasks import categorical
from finetune.tasks.class_scores import (
    brier_score,
    calibration_error,
    confusion_counts,
    label_ranks,
    losses_of,
    macro_scores,
)
from finetune.tasks.distillation import distillation_loss
from finetune.tasks.held_out_loss import held_out_loss
from finetune.tasks.losses import ClassificationLoss, batch_mixing, class_weights
from finetune.tasks.task import Task

TOP_K = 5


@dataclass(frozen=True, slots=True)
class MultiClass(Task):
    """See :class:`finetune.tasks.task.Task`, which says what each of these is for."""

    name: ClassVar[str] = "multiclass"
    deciding: ClassVar[str] = "nll"
    rising: ClassVar[Set[str]] = {"accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy"}
    closed_form: ClassVar[Literal["multinomial", "binary", "ridge"]] = "multinomial"
    has_choices: ClassVar[bool] = True

    def checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """At least two classes, all different."""
        found = tuple(str(name) for name in names)
        if len(found) < 2 or len(set(found)) < len(found):
            raise TrainingError(
                f"Expected at least two different classes, found {list(found)[:5]}; "
                "give one folder of images a class."
            )
        return found

    def collate(self, targets: Sequence[int]) -> Tensor:
        """Class indexes as int64 ``(N,)``."""
        return torch.tensor(targets, dtype=torch.int64)

    def unexpected(self, targets: Tensor, images: int, outputs: int) -> str | None:
        """Anything but an index of a class an image."""
        if targets.dtype != torch.int64 or tuple(targets.shape) != (images,):
            return f"{tuple(targets.shape)} of {targets.dtype} instead of ({images},) whole numbers"
        if images and not (int(targets.min()) >= 0 and int(targets.max()) < outputs):
            return f"others than 0 to {outputs - 1}"
        return None

    def worded(self, targets: Tensor, names: Sequence[str]) -> list[str]:
        """The names of the classes."""
        return [names[index] for index in targets.tolist()]

    def names_in(self, cell: str) -> list[str]:
        """The class."""
        return [cell]

    def strata(self, targets: Tensor) -> list[int]:
        """The class itself."""
        numbers: list[int] = targets.tolist()
        return numbers

    loss = ClassificationLoss
    class_weights = staticmethod(class_weights)
    # They call their parameters as one does where there are classes.
    mixing = staticmethod(batch_mixing)  # type: ignore[assignment]
    distillation_loss = staticmethod(distillation_loss)  # type: ignore[assignment]
    held_out_loss = staticmethod(held_out_loss)  # type: ignore[assignment]

    def probabilities(self, outputs: Tensor) -> Tensor:
        """``(..., C)`` in float32; of float32 logits, as their own softmax has them."""
        return categorical.probabilities(outputs).float()

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Their logarithms, ``(..., C)``."""
        return categorical.log_of(probabilities)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """``(..., C)`` in nats."""
        return categorical.log_probabilities(outputs)

    def decide(self, outputs: Tensor) -> Tensor:
        """The likeliest class, ``(...)``; of equals the first."""
        return categorical.likeliest(outputs)

    def confidence(self, outputs: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
        """Probability of the likeliest class, ``(...)``."""
        return categorical.probabilities(outputs).amax(dim=-1)

    def figure_names(self, outputs: int) -> list[str]:
        """Top-5 accuracy from 11 classes on."""
        names = ["accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "calibration_error"]
        return [*names, f"top{TOP_K}_accuracy"] if outputs > 2 * TOP_K else names

    def figures(
        self, outputs: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None
    ) -> dict[str, float]:
        """By the functions that also judge for reports, so a figure has one value everywhere.

        NLL and Brier score are means over images (nats; 0 to 2); balanced accuracy and macro-F1
        are means over the classes that have images.
        """
        given, truth = outputs.detach().cpu().double(), targets.cpu().numpy()
        logs, named = self.log_probabilities(given).numpy(), self.decide(given).numpy()
        classes = given.shape[1]
        values = [
            *(float(score) for score in macro_scores(confusion_counts(truth, named, classes))),
            float(losses_of(truth, logs).mean()),
            float(brier_score(truth, logs)),
            calibration_error(truth, logs),
            float((label_ranks(truth, given.numpy()) < TOP_K).mean()),
        ]
        return dict(zip(self.figure_names(classes), values, strict=False))

    def in_words(self, outputs: Tensor, targets: Tensor) -> str:
        """Accuracy and NLL."""
        right = 1 - self.held_out_loss(outputs, targets, "accuracy")
        return f"accuracy {right:.4f}  nll {self.held_out_loss(outputs, targets, 'nll'):.4f}"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log likelihood in nats."""
        return categorical.losses(outputs.detach().cpu(), targets.cpu())

    def mixture(self, member_outputs: Tensor, coefficients: Sequence[float]) -> Tensor:
        """Log probabilities of the mean of the members' probabilities."""
        return categorical.log_mean(member_outputs, coefficients)

    def choices(self, outputs: Tensor) -> Tensor:
        """The logits themselves: one question with C alternatives."""
        return outputs

    def outputs_of(self, choices: Tensor) -> Tensor:
        """They are logits."""
        return choices

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A row an image."""
        return outputs, targets


MULTICLASS = MultiClass()
