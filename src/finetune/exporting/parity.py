"""Whether a written file answers as the classifier that it was made from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.errors import ExportError
from finetune.exporting.tracing import random_views

# From one batch of images a view, (B, C_i, S_i, S_i) in [0, 1], to probabilities (B, C).
Reloaded = Callable[[tuple[Tensor, ...]], Tensor]
BATCH_SIZES = (1, 3)
TOLERANCE = 1e-4


@torch.inference_mode()
def check_parity(ensemble: Ensemble, reloaded: Reloaded) -> float:
    """Compare the answers of both to random images, in batches of one and of three.

    Returns:
        The greatest difference of a probability, or of a number as a share of the largest.

    Raises:
        ExportError: it is above 1e-4, or the answers have another shape or are no numbers.
    """
    differences = [_difference(ensemble, reloaded, size) for size in BATCH_SIZES]
    greatest = max(differences)
    if not greatest <= TOLERANCE:
        raise ExportError(
            f"Expected the exported file to answer as the checkpoint does, found answers that "
            f"differ by {greatest:.2g}, more than {TOLERANCE:g}; nothing was written, use "
            "another format."
        )
    return greatest


def _difference(ensemble: Ensemble, reloaded: Reloaded, batch_size: int) -> float:
    views = random_views(ensemble.preprocessings, batch_size, seed=batch_size)
    by_preprocessing = dict(zip(ensemble.preprocessings, views, strict=True))
    ours = ensemble.answer(ensemble.member_logits(by_preprocessing)).probabilities
    theirs = reloaded(views)
    if theirs.shape != ours.shape:
        return float("inf")
    difference = (ours.double() - theirs.double()).abs().max()
    if not ensemble.task.has_choices:  # of numbers, whatever their unit, a share of the largest
        difference = difference / ours.double().abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(float("inf")))
