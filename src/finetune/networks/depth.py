"""How deep each parameter lies: timm's own grouping, or the order of steps where it has none."""

from __future__ import annotations

from timm.models import group_parameters

from finetune.errors import NetworkError
from finetune.networks.image_network import ImageNetwork
from finetune.networks.steps import forward_steps


def parameter_depths(network: ImageNetwork, *, coarse: bool) -> dict[str, int]:
    """The depth of each parameter by name, rising from the image to the final layer.

    Args:
        coarse: by stages, not by layers; the same where timm does not group (MetaFormer, PiT).
    """
    if hasattr(network, "group_matcher"):
        found: dict[str, int] = group_parameters(
            network, network.group_matcher(coarse), reverse=True
        )
        return found
    try:
        steps = [name for name, _ in forward_steps(network)]
    except NetworkError:
        steps = []
    names = [name for name, _ in network.named_parameters()]
    owners = [_owner(name, steps) for name in names]
    places = {owner: place for place, owner in enumerate(sorted(set(owners)))}
    return {name: places[owner] for name, owner in zip(names, owners, strict=True)}


def _owner(parameter: str, steps: list[str]) -> int:
    """The index of the step that has it; what belongs to none is in the head, behind all."""
    owners = (index for index, step in enumerate(steps) if parameter.startswith(f"{step}."))
    return next(owners, len(steps))
