"""One final layer on the features of several backbones, as an ensemble of them.

The logits are linear in all features together, so they are a sum of the members' own: the fitted
weights of each backbone's features are its final layer, and the mean of logits pools them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.combining.bootstrap_heads import with_final_layer
from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember, align_classes
from finetune.training.linear_probe import Probe, fit_probe, out_of_fold
from finetune.training.probe_rows import mixed_spreads

# Of the penalties that the backbones have alone, times these: together they are more features.
FACTORS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


def fit_joint_probe(
    features: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    *,
    groups: Tensor | None = None,
    fold_of: Tensor | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> list[Probe]:
    """Fit one convex problem on several backbones' features; each one's part of the final layer.

    Each backbone has a penalty of its own: the one that cross-validation gives it alone, times a
    factor that cross-validation gives all of them together.

    Args:
        features: ``(N, D_m)`` of each backbone.
        labels, num_classes, groups, seed, say: as for :func:`fit_probe`.
        fold_of: ``(N,)``, the fold of each image whose out-of-fold answer is wanted; -1: none.

    Returns:
        Probes whose logits sum up to the answer; the bias is dealt out evenly. With ``fold_of``
        the sum for images by fits without their fold is in each, as ``held_out_logits``.
    """
    alone = [
        fit_probe(each, labels, num_classes, groups=groups, seed=seed, say=say).l2
        for each in features
    ]
    spreads = [
        mixed_spreads(each.double()) * l2**0.5 for each, l2 in zip(features, alone, strict=True)
    ]
    together, spread = torch.cat(list(features), dim=1), torch.cat(spreads)
    whole = fit_probe(
        together,
        labels,
        num_classes,
        groups=groups,
        l2=FACTORS,
        seed=seed,
        spreads=spread,
        say=say,
    )
    answers = None
    if fold_of is not None:
        fit = partial(fit_probe, spreads=spread)
        answers = out_of_fold(fit, together, labels, num_classes, fold_of=fold_of, l2=whole.l2)
    parts = torch.split(whole.weight, [each.shape[1] for each in features], dim=1)
    bias = whole.bias / len(features)
    return [
        Probe(part, bias, whole.l2 * l2, held_out_logits=answers)
        for part, l2 in zip(parts, alone, strict=True)
    ]


def joint_ensemble(
    members: Sequence[ClassifierMember],
    probes: Sequence[Probe],
    class_names: Sequence[str],
    *,
    kept: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
) -> Ensemble:
    """An ensemble whose answer is the sum of the probes' logits; the members stay as they are.

    Args:
        members: one a probe.
        probes: with a row of weights for each of the class names.
        class_names: in the order of the probes' rows.
        kept: what a checkpoint keeps of the sum's answers to images that it was fitted to, by fits
            without them; None: it learnt from training images alone.
        split: on which sides its images stood, plain; the members' own for None.

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
        own.details = _details(member, kept, split, rows)
        fitted.append(ClassifierMember(own, member.name))
    return Ensemble(fitted, pooling="geometric", class_names=class_names)


def _details(
    member: ClassifierMember,
    kept: Mapping[str, Any] | None,
    split: Mapping[str, Any] | None,
    rows: Tensor,
) -> dict[str, Any]:
    """The member's, without its own answers to images that it had learnt from.

    With ``kept``, each part answers these images as the sum does, so that their mean does too.
    """
    own = member.classifier.details.items()
    details = {key: value for key, value in own if key not in ("val", "out_of_fold")}
    if kept is not None:
        details["val"] = {**kept, "logits": kept["logits"][:, rows]}
    return details if split is None else {**details, "split": split}
