"""What is taken where no backbone is named; the one place."""

from __future__ import annotations

from finetune.networks.offline_weights import offline_backbones
from finetune.networks.pretrained import hub_refusal, needs_no_hub

# To choose from: from phones to what a small accelerator fine-tunes, convolutions and attention,
# most pretrained on more than ImageNet's thousand classes, all under Apache-2.0.
CANDIDATES = (
    "resnet50.a1_in1k",
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "mobilenetv3_large_100.miil_in21k_ft_in1k",
    "convnext_nano.in12k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k",
    "tf_efficientnetv2_s.in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "hgnetv2_b4.ssld_stage2_ft_in1k",
)


def backbones_to_choose_from(*, offline: bool) -> list[str]:
    """The documented short list, or without a hub what is installed or cached of it.

    Args:
        offline: ask no hub, also where one answers.
    """
    if not offline and hub_refusal() is None:
        return list(CANDIDATES)
    return [*offline_backbones(), *filter(needs_no_hub, CANDIDATES)]
