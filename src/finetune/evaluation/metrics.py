"""The figures of a stage as plain numbers, from the logits of all its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from finetune.evaluation.scores import (
    DominantImage,
    Floats,
    brier_score,
    calibration_error,
    confusion_counts,
    dominant_image,
    label_ranks,
    losses_of,
    macro_scores,
)

TOP_K = 5


def figure_names(num_classes: int) -> list[str]:
    """What :func:`figures_of` tells of so many classes; top-5 from 11 classes on."""
    names = ["accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "calibration_error"]
    return [*names, f"top{TOP_K}_accuracy"] if num_classes > 2 * TOP_K else names


def figures_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The figures of logits ``(N, C)``, log probabilities included, against labels ``(N,)``.

    They are computed on the CPU in float64, by the functions that also judge for reports, so that
    a figure has one value wherever it is shown. NLL and Brier score are means over images (nats; 0
    to 2); balanced accuracy and macro-F1 are means over the classes that have images.
    """
    given, truth = logits.detach().cpu().double(), labels.cpu().numpy()
    ranked, log_probabilities = given.numpy(), log_probabilities_of(given)
    confusion = confusion_counts(truth, ranked.argmax(axis=1), ranked.shape[1])
    values = [
        *(float(score) for score in macro_scores(confusion)),
        float(losses_of(truth, log_probabilities).mean()),
        float(brier_score(truth, log_probabilities)),
        calibration_error(truth, log_probabilities),
        float((label_ranks(truth, ranked) < TOP_K).mean()),
    ]
    return dict(zip(figure_names(ranked.shape[1]), values, strict=False))


def dominant_of(
    logits: Tensor, labels: Tensor, paths: Sequence[str | Path]
) -> DominantImage | None:
    """The image that carries more than half of the NLL; see :func:`dominant_image`."""
    return dominant_image(losses_of(labels.cpu().numpy(), log_probabilities_of(logits)), paths)


def log_probabilities_of(logits: Tensor) -> Floats:
    """Log probabilities ``(..., C)`` in nats, float64, of logits in any precision."""
    values: Floats = logits.detach().cpu().double().log_softmax(dim=-1).numpy()
    return values
