"""Many final layers from one computation of frozen features: an ensemble almost for free.

Each head is fitted to its optimum on other images (a bootstrap sample) or with another penalty;
all answer from one forward pass of the shared backbone, see
:mod:`finetune.combining.shared_backbone`.
Source of the samples: Breiman, Bagging predictors, 1996.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.errors import UsageError
from finetune.training.classifier import ImageClassifier
from finetune.training.linear_probe import Probe, fit_probe, out_of_fold


def bootstrap_heads(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    heads: int = 10,
    l2: float | None = None,
    seed: int = 0,
    fit: Callable[..., Probe] = fit_probe,
) -> list[Probe]:
    """Fit final layers on bootstrap samples of the same features.

    Args:
        features: ``(N, D)``, the input of the final layer.
        labels: ``(N,)``, or what else is fitted.
        num_classes: C.
        heads: how many, at least 1.
        l2: the penalty of all; chosen once by cross-validation on all images for None.
        seed: of the samples; the first so many heads do not depend on how many follow.
        fit: :func:`fit_probe`, or one like it.

    Raises:
        UsageError: fewer than one head.
    """
    if heads < 1:
        raise UsageError(f"Expected at least one head, found {heads}; 10 are usual.")
    if l2 is None:
        chosen = fit(features, labels, num_classes, seed=seed)
        l2, fit = chosen.l2, _with_own_penalties(fit, chosen)
    return [
        fit(features, labels, num_classes, sample_weights=weights, l2=l2)
        for weights in bootstrap_weights(len(labels), heads, seed)
    ]


def bootstrap_weights(images: int, heads: int, seed: int) -> list[Tensor]:
    """How often each image is in each head's sample ``(N,)``: it need not be copied."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(images, (images,), generator=generator) for _ in range(heads))
    return [torch.bincount(each, minlength=images).double() for each in drawn]


def answers_without(
    features: Tensor,
    labels: Tensor,
    heads: Sequence[Probe],
    fold_of: Tensor,
    *,
    seed: int,
    fit: Callable[..., Probe] = fit_probe,
) -> list[Tensor]:
    """Of each head of :func:`bootstrap_heads`, logits ``(N, C)`` by fits without the image's fold.

    Args:
        features, labels, seed, fit: that the heads were fitted with.
        heads: they.
        fold_of: ``(N,)``; -1: never held out, and NaN in the answers.
    """
    samples = bootstrap_weights(len(labels), len(heads), seed)
    return [
        out_of_fold(
            _with_own_penalties(fit, head),
            features,
            labels,
            len(head.bias),
            fold_of=fold_of,
            l2=head.l2,
            sample_weights=weights,
        ).float()
        for head, weights in zip(heads, samples, strict=True)
    ]


def _with_own_penalties(fit: Callable[..., Probe], probe: Probe) -> Callable[..., Probe]:
    """The fit with the penalties of each label, where the probe has such."""
    own = probe.l2_of_labels
    return fit if own is None else partial(fit, l2_of_labels=own)


def ensemble_of_heads(
    classifier: ImageClassifier,
    heads: list[Probe],
    kept: Sequence[Mapping[str, Any]] = (),
) -> Ensemble:
    """An ensemble of one backbone with several final layers; the classifier stays as it is.

    Args:
        classifier: of the backbone.
        heads: the final layers.
        kept: of each, what a checkpoint keeps of its answers to images that they have learnt from;
            empty where others are held out.

    Raises:
        UsageError: the network's final layer is not one linear layer.
    """
    members = []
    for number, head in enumerate(heads):
        own = with_final_layer(classifier, head)
        if kept:
            own.details = {**own.details, "val": kept[number]}
        members.append(ClassifierMember(own, f"head {number}"))
    return Ensemble(members)


def with_final_layer(classifier: ImageClassifier, head: Probe) -> ImageClassifier:
    """A copy of the classifier with another final layer.

    Raises:
        UsageError: the network's final layer is not one linear layer.
    """
    own = deepcopy(classifier).requires_grad_(False)
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
