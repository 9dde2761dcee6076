"""Losses on hard or soft labels, weights of the classes, and mixing the images of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision.transforms import v2  # type: ignore[import-untyped]

from finetune.errors import UsageError
from finetune.tasks import categorical

ClassWeights = Literal["none", "balanced", "effective"]
# Of the effective number of images: Cui et al. 2019 try 0.9 to 0.9999.
EFFECTIVE_BETA = 0.999


class ClassificationLoss(nn.Module):
    """Cross-entropy or focal loss (Lin et al. 2017), averaged over the batch.

    With ``focal_gamma`` 0 this is ``torch.nn.CrossEntropyLoss``, weights and smoothing included.

    Args:
        label_smoothing: probability taken from the label and spread over all classes, in [0, 1).
        focal_gamma: how much less well answered images count, >= 0.
    """

    weight: Tensor | None

    def __init__(self, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> None:
        super().__init__()
        check_loss(label_smoothing, focal_gamma)
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        # One number a class; never saved, for a checkpoint must not depend on it.
        self.register_buffer("weight", None, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits ``(B, C)`` for labels ``(B,)`` or their probabilities ``(B, C)``."""
        if self.focal_gamma == 0:
            return nn.functional.cross_entropy(
                logits, labels, weight=self.weight, label_smoothing=self.label_smoothing
            )
        classes = logits.shape[1]
        hard = not labels.is_floating_point()
        targets = one_hot(labels, classes).to(logits.dtype) if hard else labels
        weights = targets.new_ones(classes) if self.weight is None else self.weight
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / classes
        log_probabilities = categorical.log_probabilities(logits)
        modulation = (1 - log_probabilities.exp()).clamp(min=0).pow(self.focal_gamma)
        losses = -(smoothed * weights * modulation * log_probabilities).sum(dim=1)
        # As torch does: hard labels are averaged by their weights, soft ones by their number.
        return losses.sum() / ((targets * weights).sum() if hard else len(logits))


def check_loss(label_smoothing: float, focal_gamma: float) -> None:
    """Refuse settings of a loss that are out of their range."""
    if not 0 <= label_smoothing < 1 or focal_gamma < 0:
        raise UsageError(
            "Expected label_smoothing in [0, 1) and focal_gamma >= 0, found "
            f"{label_smoothing} and {focal_gamma}."
        )


def class_weights(kind: ClassWeights, counts: Sequence[int]) -> Tensor | None:
    """One weight a class, with a mean of 1 over the training images; None for ``"none"``.

    ``"balanced"``: the inverse of the number of images; ``"effective"``: the inverse of their
    effective number ``(1 - beta^n) / (1 - beta)`` (Cui et al. 2019), which is gentler.
    """
    numbers = torch.tensor([float(count) for count in counts], dtype=torch.float64)
    match kind:
        case "none":
            return None
        case "balanced":
            raw = 1 / numbers.clamp(min=1)
        case "effective":
            raw = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA ** numbers.clamp(min=1))
        case _:
            assert_never(kind)
    return (raw * numbers.sum() / (raw * numbers).sum().clamp(min=1e-12)).float()


def batch_mixing(
    num_classes: int, *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """A function from a batch to a mixed one with soft labels ``(B, C)``, or None.

    mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) from torchvision, which also takes odd
    batches; where both are wanted each batch gets one of them. Metrics stay with the hard labels.
    """
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise UsageError(
            f"Expected mixup_alpha and cutmix_alpha >= 0, found {mixup_alpha} and {cutmix_alpha}; "
            "0 switches them off."
        )
    transforms = []
    if mixup_alpha:
        transforms.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
    if cutmix_alpha:
        transforms.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))
    return v2.RandomChoice(transforms) if transforms else None
