"""The metrics of every stage, from torchmetrics: updated a batch, computed an epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

TOP_K = 5


class NegativeLogLikelihood(Metric):
    """Mean of ``-log p(label)`` in nats, from logits ``(B, C)`` and labels ``(B,)``."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch."""
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        self.total += losses
        self.count += len(labels)

    def compute(self) -> Tensor:
        """The mean over all images so far; not a number where there were none."""
        return (self.total / self.count).float()


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall of the classes that have images, as scikit-learn's ``balanced_accuracy_score``.

    torchmetrics' macro accuracy also counts, as 0, a class without images once it is predicted.
    """

    def compute(self) -> Tensor:
        """The mean over classes with at least one image."""
        confusion = super().compute().float()
        images = confusion.sum(dim=1)
        return (confusion.diagonal() / images)[images > 0].mean()


class MacroF1(MulticlassConfusionMatrix):
    """Mean F1 of the classes that have images."""

    def compute(self) -> Tensor:
        """The mean over classes with at least one image."""
        confusion = super().compute().float()
        images, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
        return (2 * confusion.diagonal() / (images + predicted))[images > 0].mean()


class ExpectedCalibrationError(MulticlassCalibrationError):
    """Calibration error over 15 bins (Guo et al. 2017) from logits.

    torchmetrics puts a confidence of exactly 1 into a bin of its own (its issue 3510), and takes
    logits that all lie in [0, 1] for probabilities; both are closed here.
    """

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch of logits ``(B, C)`` and labels ``(B,)``."""
        probabilities = logits.float().softmax(dim=-1)
        super().update(probabilities.clamp(max=1 - 1e-6), labels)


def classification_metrics(num_classes: int, *, prefix: str = "") -> MetricCollection:
    """Accuracy, balanced accuracy, macro-F1, NLL, calibration error; top-5 from 11 classes on.

    Every metric takes logits ``(B, C)`` and hard labels ``(B,)``. Balanced accuracy and macro-F1
    are means over the classes that have images.
    """
    metrics: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "balanced_accuracy": BalancedAccuracy(num_classes, validate_args=False),
        "macro_f1": MacroF1(num_classes, validate_args=False),
        "nll": NegativeLogLikelihood(),
        "calibration_error": ExpectedCalibrationError(num_classes, n_bins=15, validate_args=False),
    }
    if num_classes > 2 * TOP_K:
        metrics[f"top{TOP_K}_accuracy"] = MulticlassAccuracy(
            num_classes, average="micro", top_k=TOP_K, validate_args=False
        )
    # Groups are found by equal states after the first batch: one of a single image would merge
    # metrics that differ.
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)


def figures_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """All metrics of logits ``(N, C)`` against labels ``(N,)`` as plain numbers."""
    metrics = classification_metrics(logits.shape[1])
    for metric in metrics.values(copy_state=False):
        # These are all the answers there are: other processes must not be waited for.
        metric._to_sync = metric.sync_on_compute = False
    metrics.update(logits, labels)
    return {name: float(value) for name, value in metrics.compute().items()}
