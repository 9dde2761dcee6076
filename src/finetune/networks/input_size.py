"""The size at which a fit sees images by a network that was last trained on far larger ones.

DINOv2 was pretrained at 224 pixels and for a short while at 518, for dense tasks: there an image
takes five times as many patches, and longer still. Its positions are interpolated for any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models import Eva, VisionTransformer

from finetune.networks.factory import build_network, network_spec

USUAL = 224  # pixels
FAR_ABOVE = 2 * USUAL


@dataclass(frozen=True, slots=True)
class SmallerSize:
    """What is seen instead.

    Attributes:
        pixels: the side of an image, in whole patches.
        own: what the weights were last trained at.
        factor: how many times as many patches an image has there.
    """

    pixels: int
    own: int
    factor: float


def smaller_size(name: str) -> SmallerSize | None:
    """About the usual size, of a transformer for far larger images whose name does not say so.

    None for others: the size in ``eva_giant_patch14_560`` was chosen with the name, and that of a
    convolutional network belongs to its width.

    Args:
        name: as for :func:`finetune.create_network`.

    Raises:
        UnknownBackboneError: no network has this name, or its configuration cannot be had.
    """
    spec = network_spec(name)
    own = spec.arguments.get("img_size")
    if not isinstance(own, int) or own < FAR_ABOVE or str(own) in name:
        return None
    with torch.device("meta"):
        network = build_network(spec, 1)
    if type(network) not in (VisionTransformer, Eva):  # others hold to their size by more
        return None
    assert isinstance(network, VisionTransformer | Eva)
    patch = network.patch_embed.patch_size[0]
    pixels = round(USUAL / patch) * patch
    return SmallerSize(pixels, own, (own / pixels) ** 2)
