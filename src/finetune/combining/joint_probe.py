"""One final layer on the features of several backbones, as an ensemble of them.

The logits are linear in all features together, so they are a sum of the members' own: the fitted
weights of each backbone's features are its final layer, and the mean of logits pools them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune.combining.bootstrap_heads import with_final_layer
from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember, align_classes
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.probe_rows import mixed_spreads

# Of the penalties that the backbones have alone, times these: together they are more features.
FACTORS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


def fit_joint_probe(
    features: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    *,
    groups: Tensor | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> list[Probe]:
    """Fit one convex problem on several backbones' features; each one's part of the final layer.

    Each backbone has a penalty of its own: the one that cross-validation gives it alone, times a
    factor that cross-validation gives all of them together.

    Args:
        features: ``(N, D_m)`` of each backbone.
        labels, num_classes, groups, seed, say: as for :func:`fit_probe`.

    Returns:
        Probes whose logits sum up to the answer; the bias is dealt out evenly.
    """
    alone = [
        fit_probe(each, labels, num_classes, groups=groups, seed=seed, say=say).l2
        for each in features
    ]
    spreads = [
        mixed_spreads(each.double()) * l2**0.5 for each, l2 in zip(features, alone, strict=True)
    ]
    whole = fit_probe(
        torch.cat(list(features), dim=1),
        labels,
        num_classes,
        groups=groups,
        l2=FACTORS,
        seed=seed,
        spreads=torch.cat(spreads),
        say=say,
    )
    parts = torch.split(whole.weight, [each.shape[1] for each in features], dim=1)
    bias = whole.bias / len(features)
    return [Probe(part, bias, whole.l2 * l2) for part, l2 in zip(parts, alone, strict=True)]


def joint_ensemble(
    members: Sequence[ClassifierMember], probes: Sequence[Probe], class_names: Sequence[str]
) -> Ensemble:
    """An ensemble whose answer is the sum of the probes' logits; the members stay as they are.

    Args:
        members: one a probe.
        probes: with a row of weights for each of the class names.
        class_names: in the order of the probes' rows.

    Raises:
        UsageError: a member's final layer is not one linear layer.
    """
    fitted = []
    for member, probe in zip(members, probes, strict=True):
        order = align_classes(member.class_names, class_names, source=member.name)
        rows = torch.arange(len(class_names)) if order is None else torch.tensor(order).argsort()
        # Pooling takes the mean of the logits, the probe their sum.
        weight, bias = (len(probes) * value[rows] for value in (probe.weight, probe.bias))
        own = with_final_layer(member.classifier, Probe(weight, bias, probe.l2))
        fitted.append(ClassifierMember(own, member.name))
    return Ensemble(fitted, pooling="geometric", class_names=class_names)
