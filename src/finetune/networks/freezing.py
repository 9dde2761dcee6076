"""Freeze and thaw a network by depth; works on every timm classifier and on the baselines.

A network is a row of *stages*, from the one that sees the image to the final layer, which is
always called ``"head"``::

    list(network_stages(resnet))       # ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head']
    freeze(resnet, stages_below(resnet, "layer4"))  # layer4 and head learn, the rest stands still

Frozen means frozen: ``requires_grad`` is off *and* the modules stay in eval mode, so that dropout
is silent and batch-norm statistics do not move. Modes do not survive ``network.train()``: whoever
calls that calls :func:`apply_modes` right after it. Nothing is replaced or patched, and the
``state_dict`` keeps its keys.

Where the lower stages are frozen, they need to see an image only once::

    bottom, top = split_at(resnet, "layer4")
    activations = bottom(images)       # eval mode, no gradients; worth caching
    logits = top(activations)          # in the network's own mode, with gradients
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from timm.models._manipulate import group_with_matcher
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import NetworkError
from finetune.networks.final_layer import head_parameters
from finetune.networks.image_network import ImageNetwork
from finetune.networks.splitting import Split, split_at_parameters

BatchNormMode = Literal["eval", "train", "frozen"]
HEAD = "head"


def network_stages(network: ImageNetwork) -> dict[str, tuple[str, ...]]:
    """Names of all parameters, by stage, from ``"stem"`` up to ``"head"``.

    The grouping is timm's own (``group_matcher``). ``"head"`` is exactly what
    ``get_classifier`` returns (and an auxiliary head); what else timm counts to the head, such
    as the last norm of ConvNeXt, belongs to the last stage below it.
    """
    names = [name for name, _ in network.named_parameters()]
    head = head_parameters(network)
    groups = group_with_matcher(((name, name) for name in names), network.group_matcher(True))
    depths = [groups[depth] for depth in sorted(groups)]
    if len(depths) > 1 and not head.isdisjoint(depths[-1]):
        depths[-2:] = [depths[-2] + depths[-1]]
    depths = [[name for name in depth if name not in head] for depth in depths]
    depths = [depth for depth in depths if depth]
    stages = {
        _stage_name(index, group, set(names) - set(group)): tuple(group)
        for index, group in enumerate(depths)
    }
    return {**stages, HEAD: tuple(name for name in names if name in head)}


def stages_below(network: ImageNetwork, boundary: str) -> tuple[str, ...]:
    """Names of the stages nearer to the image than ``boundary``."""
    names = list(network_stages(network))
    _check_stages([boundary], names)
    return tuple(names[: names.index(boundary)])


def freeze(
    network: ImageNetwork, stages: Collection[str], *, batch_norm: BatchNormMode = "eval"
) -> None:
    """Freeze these stages and let all others learn; then set every module's mode to match.

    Args:
        network: changed in place.
        stages: names out of :func:`network_stages`; an empty collection thaws everything.
        batch_norm: of the stages that learn, see :func:`apply_modes`; ``"frozen"`` also takes
            scale and shift of all batch norms out of training.

    Raises:
        NetworkError: a name that is no stage of this network.
    """
    names = network_stages(network)
    _check_stages(stages, list(names))
    parameters = dict(network.named_parameters())
    for stage, members in names.items():
        for name in members:
            parameters[name].requires_grad_(stage not in stages)
    if batch_norm == "frozen":
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
    apply_modes(network, batch_norm=batch_norm)


def apply_modes(network: ImageNetwork, *, batch_norm: BatchNormMode = "eval") -> None:
    """Put all that is frozen into eval mode; call it after every ``network.train()``.

    What is frozen is read from ``requires_grad``: a module whose parameters are all frozen, with
    everything inside it. A network in eval mode is left alone.

    Args:
        network: changed in place.
        batch_norm: of layers that are not frozen. ``"eval"``: statistics stay as they are, scale
            and shift learn; right for fine-tuning on little data. ``"train"``: statistics follow
            the batches; needed from scratch. ``"frozen"``: as ``"eval"``.
    """
    if not network.training:
        return
    _evaluate_frozen(network)
    if batch_norm != "train":
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def split_at(network: ImageNetwork, boundary: str) -> Split:
    """Cut the network into what lies below a stage and the rest, sharing its modules.

    Args:
        network: left as it is, modes included.
        boundary: the first stage of the upper half; ``"head"`` for the final layer alone, which
            works for every family. Then the activations are its input, ``(B, features)``.

    Raises:
        NetworkError: no such stage, nothing below it, or a family whose order of modules is not
            known (then cut at ``"head"``, or run the network as a whole).
    """
    stages = network_stages(network)
    _check_stages([boundary], list(stages))
    return split_at_parameters(network, boundary, stages[boundary])


def _stage_name(index: int, members: Sequence[str], others: Collection[str]) -> str:
    """``"stem"``, or the shortest module path that only this stage's parameters are under."""
    if index == 0:
        return "stem"
    path = members[0].split(".")[:-1]
    for depth in range(1, len(path) + 1):
        name = ".".join(path[:depth])
        if not any(other.startswith(f"{name}.") for other in others):
            return name
    return f"stage{index}"


def _evaluate_frozen(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(value.requires_grad for value in parameters):
        module.eval()
        return
    for child in module.children():
        _evaluate_frozen(child)


def _check_stages(stages: Collection[str], known: Sequence[str]) -> None:
    unknown = [stage for stage in stages if stage not in known]
    if unknown:
        raise NetworkError(
            f"Expected stages out of {', '.join(known)}, found {', '.join(map(repr, unknown))}."
        )
