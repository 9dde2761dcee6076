"""Members that share one backbone bit for bit: it runs once for all of their final layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.combining.members import ClassifierMember, Member, Views
from finetune.errors import NetworkError
from finetune.networks.image_network import ImageNetwork
from finetune.networks.splitting import split_at_parameters
from finetune.training.classifier import ImageClassifier


def head_names(network: ImageNetwork) -> tuple[str, ...]:
    """Names of the final layer's tensors in the network's state dict."""
    head = network.get_classifier()
    prefixes = [name for name, module in network.named_modules() if module is head]
    return tuple(
        key for key in network.state_dict() if any(key.startswith(f"{p}.") for p in prefixes)
    )


def group_by_backbone(members: Sequence[Member]) -> list[list[int]]:
    """Indexes of members whose backbones are equal bit for bit, in groups; most are alone.

    Members of one group share the first one's tensors afterwards, so they take memory once.
    """
    groups: list[list[int]] = []
    for index, member in enumerate(members):
        home = None
        if isinstance(member, ClassifierMember):
            home = next((g for g in groups if _same_backbone(members[g[0]], member)), None)
        if home is None:
            groups.append([index])
        else:
            home.append(index)
            _share_backbone(members[home[0]], member)
    return groups


def grouped_logits(group: Sequence[ClassifierMember], views: Views) -> list[Tensor]:
    """Answers of members that share a backbone: it runs once, then each final layer."""
    first = group[0].classifier
    if len(group) == 1:
        return [group[0].logits(views)]
    images = first.normalised(views[first.preprocessing])
    features = split_at_parameters(first.network, "head", ()).bottom(images)
    return [logits_of_features(member.classifier, features) for member in group]


def logits_of_features(classifier: ImageClassifier, features: Tensor) -> Tensor:
    """Logits ``(N, C)`` float32 of what enters the final layer, ``(N, ...)``, where that is."""
    top = split_at_parameters(classifier.network, "head", ()).top
    logits: Tensor = classifier.unit(top(features)).float()
    return logits


def _same_backbone(first: Member, second: Member) -> bool:
    if not isinstance(first, ClassifierMember) or not isinstance(second, ClassifierMember):
        return False
    one, other = first.classifier, second.classifier
    if (one.spec, one.preprocessing) != (other.spec, other.preprocessing):
        return False
    try:
        split_at_parameters(one.network, "head", ())
    except NetworkError:
        return False
    heads = head_names(one.network)
    if not heads or any(name not in heads for name in head_names(other.network)):
        return False
    left, right = one.network.state_dict(), other.network.state_dict()
    return left.keys() == right.keys() and all(
        name in heads or torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def _share_backbone(first: Member, second: Member) -> None:
    assert isinstance(first, ClassifierMember)
    assert isinstance(second, ClassifierMember)
    heads = head_names(second.classifier.network)
    own = second.classifier.network.state_dict()
    # The parameters themselves, so that they stay one where the members move to a device.
    shared = {
        name: own[name] if name in heads else tensor
        for name, tensor in first.classifier.network.state_dict(keep_vars=True).items()
    }
    second.classifier.network.load_state_dict(shared, assign=True)
    second.classifier.requires_grad_(False)
