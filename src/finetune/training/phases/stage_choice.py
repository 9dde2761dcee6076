"""Whether the final layer reads several stages as well: where cross-validation says so.

Both final layers are fitted to features of one pass. The one that reads less stays unless the other
answers held-out images better by more than two standard errors of the gain: with one, two classes
of few images took it by chance, and lost by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.networks.staged import Staged, read_stages
from finetune.spec.network import STAGES
from finetune.tasks.task import Task
from finetune.training.classifier import ImageClassifier
from finetune.training.linear_probe import Probe
from finetune.training.penalty_search import FOLDS, MAX_WORK

SURE = 2.0
# Nats an image, or of standardised numbers; below, nothing is gained that anybody sees.
LEAST = 2e-3


def let_read(
    classifier: ImageClassifier, stages: Sequence[str], scales: Tensor | None = None
) -> None:
    """Let the final layer read stages of the network as well, where it does not do so already.

    The answers stay as they are.
    """
    if isinstance(classifier.network, Staged):
        return
    read_stages(classifier.network, stages, scales)
    classifier.spec = classifier.spec.reading(stages)
    options = classifier.hparams["network_options"] or {}
    classifier.hparams["network_options"] = {**options, STAGES: list(stages)}


def is_affordable(features: Tensor, further: Tensor, outputs: int) -> bool:
    """Whether there is a choice, and time to fit another final layer for it."""
    width = features.shape[1] + further.shape[1]
    work = FOLDS * len(features) * min(len(features), width) * outputs
    return further.shape[1] > 0 and work <= MAX_WORK


def scales_of(features: Tensor, further: Tensor, widths: Sequence[int]) -> Tensor:
    """By what outputs of stages ``(N, S)`` are multiplied, ``(S,)``, to vary as the head's do.

    Args:
        features: the head's, ``(N, D)``.
        further: one stage's beside the other's.
        widths: of each stage, S in all.
    """
    common = features.double().std(dim=0, correction=0).mean()
    parts = torch.split(further.double(), list(widths), dim=1)
    own = [each.std(dim=0, correction=0).mean() for each in parts]
    ones = torch.ones((), dtype=torch.float64)
    scales = [common / spread if spread > 0 and common > 0 else ones for spread in own]
    return torch.stack(scales).repeat_interleave(torch.tensor(widths)).float()


class Reading(NamedTuple):
    """A final layer that reads stages as well, fitted to their features times ``scales (S,)``."""

    probe: Probe
    scales: Tensor


def fitted_reading(
    fit: Callable[[Tensor], Probe], features: Tensor, further: Tensor, widths: Sequence[int]
) -> Reading:
    """Fit one to the head's features ``(N, D)`` and those of stages ``(N, S)``, so wide each."""
    scales = scales_of(features, further, widths)
    return Reading(fit(torch.cat([features, further * scales], dim=1)), scales)


def answers_better(other: Probe, plain: Probe, task: Task, targets: Tensor, groups: Tensor) -> bool:
    """Whether held-out images have less loss with the other, by :data:`SURE` standard errors and by
    :data:`LEAST`.

    Args:
        other, plain: with ``held_out_logits`` of the same rows.
        task: whose loss it is.
        targets: ``(N, ...)`` as the final layers were fitted to them.
        groups: ``(N,)``; the rows of one group count as one image.
    """
    assert other.held_out_logits is not None
    assert plain.held_out_logits is not None
    gains = task.losses(plain.held_out_logits, targets)
    gains = gains - task.losses(other.held_out_logits, targets)
    known = gains.isfinite()
    if not bool(known.any()):
        return False
    _, image = torch.unique(groups[known], return_inverse=True)
    count = torch.bincount(image)
    mean = torch.zeros(len(count), dtype=gains.dtype).index_add(0, image, gains[known]) / count
    if len(mean) < 2:
        return False
    return float(mean.mean()) > max(LEAST, SURE * float(mean.std()) / len(mean) ** 0.5)
