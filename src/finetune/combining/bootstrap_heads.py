"""Many final layers from one computation of frozen features: an ensemble almost for free.

Each head is fitted to its optimum on other images (a bootstrap sample) or with another penalty;
all answer from one forward pass of the shared backbone, see
:mod:`finetune.combining.shared_backbone`.
Source of the samples: Breiman, Bagging predictors, 1996.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.errors import UsageError
from finetune.training.classifier import ImageClassifier
from finetune.training.linear_probe import Probe, fit_probe


def bootstrap_heads(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    heads: int = 10,
    l2: float | None = None,
    seed: int = 0,
) -> list[Probe]:
    """Fit final layers on bootstrap samples of the same features.

    Args:
        features: ``(N, D)``, the input of the final layer.
        labels: ``(N,)``.
        num_classes: C.
        heads: how many, at least 1.
        l2: the penalty of all; chosen once by cross-validation on all images for None.
        seed: of the samples; the first so many heads do not depend on how many follow.

    Raises:
        UsageError: fewer than one head.
    """
    if heads < 1:
        raise UsageError(f"Expected at least one head, found {heads}; 10 are usual.")
    if l2 is None:
        l2 = fit_probe(features, labels, num_classes, seed=seed).l2
    generator = torch.Generator().manual_seed(seed)
    fitted = []
    for _ in range(heads):
        # How often each image is drawn, as a weight: the sample itself need not be copied.
        drawn = torch.randint(len(labels), (len(labels),), generator=generator)
        weights = torch.bincount(drawn, minlength=len(labels)).double()
        fitted.append(fit_probe(features, labels, num_classes, sample_weights=weights, l2=l2))
    return fitted


def ensemble_of_heads(classifier: ImageClassifier, heads: list[Probe]) -> Ensemble:
    """An ensemble of one backbone with several final layers; the classifier stays as it is.

    Raises:
        UsageError: the network's final layer is not one linear layer.
    """
    return Ensemble(
        [
            ClassifierMember(with_final_layer(classifier, head), f"head {number}")
            for number, head in enumerate(heads)
        ]
    )


def with_final_layer(classifier: ImageClassifier, head: Probe) -> ImageClassifier:
    """A copy of the classifier with another final layer.

    Raises:
        UsageError: the network's final layer is not one linear layer.
    """
    own = deepcopy(classifier)
    layer = own.network.get_classifier()
    if not isinstance(layer, torch.nn.Linear):
        raise UsageError(
            f"Expected a linear final layer in {classifier.backbone}, found "
            f"{type(layer).__name__}; fit the heads one by one."
        )
    with torch.no_grad():
        layer.weight.copy_(head.weight.to(layer.weight.dtype))
        layer.bias.copy_(head.bias.to(layer.bias.dtype))
    return own
