"""What a network runs one after the other, found by following a blank image through a twin of it.

Where each module takes what the one before it gave, and nothing happens in between, these modules
in this order are all below the head, and the network can be cut between any two of them. This is
found out, not listed a family: no table can be wrong, and no family is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.networks.image_network import ImageNetwork

# Where a network keeps what was found; its copies have it too.
CHAIN, FEEDS = "module_chain_", "feeds_final_layer_"


def module_chain(network: ImageNetwork) -> Mapping[str, torch.Size]:
    """The modules by name, in order, with the shape ``(2, ...)`` of what each gives.

    Empty where they are no chain: something else is computed between them, one of them takes more
    than a tensor or runs twice, or training runs others.
    """
    if CHAIN not in vars(network):
        setattr(network, CHAIN, _followed(network))
    found: Mapping[str, torch.Size] = vars(network)[CHAIN]
    return found


def feeds_final_layer(network: ImageNetwork) -> bool:
    """Whether the head runs all layers but the final one where it is asked for ``pre_logits``."""
    if FEEDS not in vars(network):
        setattr(network, FEEDS, _feeds(network))
    return bool(vars(network)[FEEDS])


def _followed(network: ImageNetwork) -> dict[str, torch.Size]:
    try:
        twin, image = _without_weights(network), _blank(network)
        evaluated, trained = (_chain(twin.train(training), image) for training in (False, True))
    except Exception:  # whatever a network says of a blank image without values
        return {}
    return evaluated if evaluated == trained else {}


def _chain(network: ImageNetwork, image: Tensor) -> dict[str, torch.Size]:
    chain = _Chain(image)
    watched = [chain.watch(name, network.get_submodule(name)) for name in _links(network)]
    with torch.no_grad():
        chain.holds &= chain.is_last(network.forward_features(image))
    for handle in sum(watched, ()):
        handle.remove()
    return chain.shapes if chain.holds else {}


class _Chain:
    """What has run so far, the last value, and whether each module took the one before it.

    A value that was changed in place is another one.
    """

    def __init__(self, image: Tensor) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self.holds = True
        self._is_now(image)

    def watch(self, name: str, module: nn.Module) -> tuple[Any, ...]:
        """Follow a module too, until what this returns is removed."""
        return (
            module.register_forward_pre_hook(self._enters, with_kwargs=True),
            module.register_forward_hook(partial(self._leaves, name)),
        )

    def is_last(self, value: Any) -> bool:
        """Whether this very value was the last."""
        return value is self._value and value._version == self._version

    def _enters(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.holds &= len(given) == 1 and not named and self.is_last(given[0])

    def _leaves(self, name: str, module: nn.Module, given: Any, output: Any) -> None:
        self.holds &= isinstance(output, Tensor) and name not in self.shapes
        if self.holds:
            self.shapes[name] = output.shape
            self._is_now(output)

    def _is_now(self, value: Tensor) -> None:
        self._value, self._version = value, value._version


def _feeds(network: ImageNetwork) -> bool:
    ran: list[nn.Module] = []
    try:
        twin = _without_weights(network).eval()
        features = twin.forward_features(_blank(network))
        for module in twin.modules():
            if list(module.parameters(recurse=False)):
                module.register_forward_hook(lambda module, given, output: ran.append(module))
        twin.forward_head(features)
        final = set(twin.get_classifier().modules())
        before = [module for module in ran if module not in final]
        ran.clear()
        twin.forward_head(features, pre_logits=True)
    except Exception:  # as above
        return False
    return ran == before


def _links(network: ImageNetwork) -> Iterator[str]:
    """Names of the children, and of the children's own where these run in their order.

    What timm calls a stage is one link.
    """
    stages = {each["module"] for each in getattr(network, "feature_info", ())}
    for name, child in network.named_children():
        in_order = isinstance(child, nn.ModuleList) or type(child).forward is nn.Sequential.forward
        if in_order and name not in stages:
            yield from (f"{name}.{link}" for link, _ in child.named_children())
        else:
            yield name


def _without_weights(network: ImageNetwork) -> ImageNetwork:
    """A twin whose tensors have no values: made at once, and running it costs next to nothing."""
    twins: dict[int, Any] = {}
    for tensor in _tensors(network):
        twins[id(tensor)] = meta = tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            twins[id(tensor)] = nn.Parameter(meta, requires_grad=False)
    return deepcopy(network, twins)


def _tensors(network: ImageNetwork) -> Iterator[Tensor]:
    """Parameters, buffers, and what modules keep beside them."""
    for module in network.modules():
        for kept in vars(module).values():
            values = kept.values() if isinstance(kept, dict) else (kept,)
            yield from (value for value in values if isinstance(value, Tensor))


def _blank(network: ImageNetwork) -> Tensor:
    """Two images that the network takes."""
    made_for = getattr(getattr(network, "patch_embed", None), "img_size", None)
    height, width = made_for or network.pretrained_cfg["input_size"][-2:]
    return torch.empty(2, _channels(network), height, width, device="meta")


def _channels(network: ImageNetwork) -> int:
    """Of an image: those of the first convolution, or what the network says."""
    convolutions = (each for each in network.modules() if isinstance(each, nn.Conv2d))
    first = next(convolutions, None)
    return int(getattr(network, "in_chans", 3)) if first is None else first.in_channels
