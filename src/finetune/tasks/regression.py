"""A number an image: targets float ``(N, 1)`` in the user's unit, outputs likewise.

A network answers standardised numbers, which :class:`finetune.tasks.units.Unit` turns into the
user's unit before any room sees them. There are no alternatives to choose from: what is made of
alternatives (temperatures, votes, entropies) is refused here, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from finetune.errors import TrainingError, UsageError
from finetune.spec.choices import Metric
from finetune.spec.numbers import LARGEST, quantile_bins
from finetune.tasks.held_out_loss import Measure, held_out_loss
from finetune.tasks.losses import ClassWeights
from finetune.tasks.number_scores import FIGURES, number_scores
from finetune.tasks.task import Mixing, Task
from finetune.tasks.units import Unit


class HuberLoss(nn.Module):
    """Squared within one spread of the target, linear beyond: one wrong number moves little.

    Source: Huber, Robust estimation of a location parameter, 1964.
    """

    weight: Tensor | None = None

    def __init__(self, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> None:
        super().__init__()
        if label_smoothing or focal_gamma:
            raise UsageError(
                "Expected --model.label_smoothing 0 and --model.focal_gamma 0 for numbers, found "
                f"{label_smoothing} and {focal_gamma}; leave them out."
            )

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of standardised outputs ``(B, K)`` for targets ``(B, K)``."""
        return nn.functional.huber_loss(outputs, targets.to(outputs.dtype))


@dataclass(frozen=True, slots=True)
class Regression(Task):
    """See :class:`finetune.tasks.task.Task`, which says what each of these is for."""

    name: ClassVar[str] = "regression"
    deciding: ClassVar[str] = "mae"
    rising: ClassVar[Set[str]] = {"r2", "spearman"}
    closed_form: ClassVar[Literal["multinomial", "binary", "ridge"]] = "ridge"
    has_choices: ClassVar[bool] = False

    def checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """One column."""
        found = tuple(str(name) for name in names)
        if len(found) != 1:
            raise TrainingError(
                f"Expected one column of numbers, found {list(found)[:5]}; fit one checkpoint for "
                "each."
            )
        return found

    def unit(self, outputs: int) -> Unit:
        """The user's."""
        return Unit(outputs)

    def collate(self, targets: Sequence[float]) -> Tensor:
        """Float32 ``(N, 1)``."""
        return torch.tensor(targets, dtype=torch.float32).unsqueeze(1)

    def unexpected(self, targets: Tensor, images: int, outputs: int) -> str | None:
        """Anything but a finite number an image."""
        if targets.dtype != torch.float32 or tuple(targets.shape) != (images, outputs):
            return f"{tuple(targets.shape)} of {targets.dtype} instead of ({images}, {outputs})"
        return None if bool((targets.abs() <= LARGEST).all()) else "NaN or infinity"

    def worded(self, targets: Tensor, names: Sequence[str]) -> list[str]:
        """Each number with six digits."""
        return [f"{value:.6g}" for value in targets[:, 0].tolist()]

    def names_in(self, cell: str) -> list[str]:
        """None."""
        return []

    def strata(self, targets: Tensor) -> list[int]:
        """Bins by quantiles."""
        return quantile_bins(targets[:, 0].tolist())

    loss = HuberLoss

    def class_weights(self, kind: ClassWeights, counts: Sequence[int]) -> Tensor | None:
        """None: there are no classes.

        Raises:
            UsageError: weights are asked for.
        """
        if kind != "none":
            raise UsageError(
                f"Expected --model.class_weights none for numbers, found {kind}; leave it out: "
                "there are no classes."
            )
        return None

    def mixing(self, outputs: int, *, mixup_alpha: float, cutmix_alpha: float) -> Mixing | None:
        """None: what half an image is worth is not known.

        Raises:
            UsageError: mixing is asked for.
        """
        if mixup_alpha or cutmix_alpha:
            raise UsageError(
                "Expected --model.mixup_alpha 0 and --model.cutmix_alpha 0 for numbers, found "
                f"{mixup_alpha} and {cutmix_alpha}; leave them out."
            )
        return None

    def distillation_loss(self, outputs: Tensor, taught: Tensor, *, temperature: float) -> Tensor:
        """The Huber loss to the teacher's numbers, standardised alike; no temperature."""
        return nn.functional.huber_loss(outputs, taught.to(outputs.dtype))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The numbers themselves, in float32."""
        return outputs.float()

    def of_probabilities(self, probabilities: Tensor) -> Tensor:
        """The numbers themselves."""
        return probabilities.double()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """The numbers themselves."""
        return outputs

    def decide(self, outputs: Tensor) -> Tensor:
        """The numbers themselves."""
        return outputs

    def confidence(self, outputs: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
        """Refused: an interval says how sure a number is."""
        _refuse("a confidence", "calibrate with --conformal for intervals")

    def figure_names(self, outputs: int) -> list[str]:
        """MAE, RMSE, R2, Spearman's correlation."""
        return list(FIGURES)

    def figures(
        self, outputs: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None
    ) -> dict[str, float]:
        """See :func:`finetune.tasks.number_scores.number_scores`; errors in the user's unit."""
        given, truth = (values.detach().cpu().double().numpy() for values in (outputs, targets))
        return number_scores(given[:, 0], truth[:, 0])

    def in_words(self, outputs: Tensor, targets: Tensor) -> str:
        """MAE and R2."""
        figures = self.figures(outputs, targets)
        return f"mae {figures['mae']:.4g}  r2 {figures['r2']:.4f}"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The absolute error in the user's unit, ``(..., N)``."""
        given, truth = outputs.detach().cpu().double(), targets.cpu().double()
        return (given - truth).abs().mean(dim=-1)

    def held_out_loss(self, outputs: Tensor, targets: Tensor, metric: Metric) -> float:
        """The mean absolute error, whichever measure of the default is meant.

        Raises:
            UsageError: a measure of names.
        """
        rows = self.rows(outputs.detach().cpu(), targets.cpu())
        return held_out_loss(*rows, self.measure(metric))

    def measure(self, metric: Metric) -> Measure:
        """The mean absolute error, whichever measure of the default is meant.

        Raises:
            UsageError: a measure of names.
        """
        if metric != "nll":
            _refuse(f"--metric {metric}", "leave it out: the mean absolute error decides")
        return "mae"

    def mixture(self, member_outputs: Tensor, coefficients: Sequence[float]) -> Tensor:
        """The weighted mean of the members' numbers."""
        weights = torch.tensor(coefficients, dtype=torch.float64)
        return torch.einsum("m,m...->...", weights, member_outputs.double())

    def choices(self, outputs: Tensor) -> Tensor:
        """Refused."""
        _refuse("votes", "pool by the mean")

    def outputs_of(self, choices: Tensor) -> Tensor:
        """Refused."""
        _refuse("votes", "pool by the mean")

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A row an image."""
        return outputs, targets[:, 0]


def _refuse(what: str, instead: str) -> NoReturn:
    raise UsageError(
        f"Expected names to choose from for {what}, found numbers (the task regression), for which "
        f"there is none; {instead}."
    )


REGRESSION = Regression()
