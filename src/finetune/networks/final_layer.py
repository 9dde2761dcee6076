"""The final layer, and what in it makes the logits: the tensors that hold one row a class."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn

from finetune.networks.image_network import ImageNetwork

# A second answer from half-way up (Inception v3); it learns with the final layer.
AUXILIARY_HEAD = "AuxLogits"


def final_layers(network: ImageNetwork) -> list[nn.Module]:
    """The final layer; several where their answers are averaged (distilled vision transformers)."""
    found = network.get_classifier()
    return list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]


def final_parameters(network: ImageNetwork) -> set[str]:
    """Names of the parameters of :func:`final_layers`."""
    owned = {id(value) for layer in final_layers(network) for value in layer.parameters()}
    return {name for name, value in network.named_parameters() if id(value) in owned}


def head_parameters(network: ImageNetwork) -> set[str]:
    """Names of what learns for the classes alone: the final layer and an auxiliary head."""
    auxiliary = f"{AUXILIARY_HEAD}."
    names = {name for name, _ in network.named_parameters() if name.startswith(auxiliary)}
    return final_parameters(network) | names


def output_tensors(network: ImageNetwork) -> tuple[str, ...]:
    """Names of weight and bias of the linear layers whose outputs are the logits.

    Row ``c`` of each belongs to class ``c``, and dividing all of them by T divides the logits by T,
    also where several answers are averaged (distilled vision transformers) or a norm stands before
    the layer (LeViT, RepViT). Batch norms inside a final layer are not among them.

    Returns:
        No names where it is not plain which layer that is.
    """
    heads = final_layers(network)
    inside = {id(module) for head in heads for module in head.modules()}
    layers = {
        name: module
        for name, module in network.named_modules()
        if id(module) in inside and any(True for _ in module.parameters(recurse=False))
    }
    outputs = {
        name: layer
        for name, layer in layers.items()
        if _linear(layer) and layer.weight.shape[0] == network.num_classes
    }
    if any(id(layer) not in map(id, heads) for layer in outputs.values()):
        # Inside of a larger final layer, what is as wide as the classes may be a hidden layer.
        shapes = [
            tensor.shape
            for name, layer in layers.items()
            for tensor in layer.parameters(recurse=False)
            if name not in outputs
        ]
        into = [layer.weight.shape[1] for layer in outputs.values()]
        if network.num_classes in [*into, *(shape[0] for shape in shapes if shape)]:
            return ()
    return tuple(
        f"{name}.{parameter}"
        for name, layer in outputs.items()
        for parameter, _ in layer.named_parameters(recurse=False)
    )


def _linear(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(layer, nn.Linear | nn.Conv2d)
