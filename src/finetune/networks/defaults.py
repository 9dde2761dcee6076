"""What is taken where no backbone is named; the one place."""

from __future__ import annotations

from finetune.networks.offline_weights import offline_backbones
from finetune.networks.pretrained import hub_refusal, needs_no_hub
from finetune.runtime import has_accelerator

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

AUTO = "auto"  # what a fit's backbone is called where none is named
ON_ACCELERATOR, ON_CPU = "convnext_tiny.in12k_ft_in1k", "convnext_nano.in12k_ft_in1k"


def default_backbone(
    pretrained: bool | str, *, on_accelerator: bool | None = None
) -> tuple[str, str]:
    """What a fit takes where no backbone is named, and why.

    Args:
        pretrained: as ``--model.pretrained``: only for the network's own weights a hub is needed.
        on_accelerator: whether networks compute on one; None: whether there is one.
    """
    accelerated = has_accelerator() if on_accelerator is None else on_accelerator
    name = ON_ACCELERATOR if accelerated else ON_CPU
    reason = f"the default on {'an accelerator' if accelerated else 'a CPU'}"
    if pretrained is not True or needs_no_hub(name) or hub_refusal() is None:
        return name, reason
    installed = offline_backbones()
    if not installed:
        return name, reason  # whoever looks for its weights says what can be done
    return installed[0], f"installed; {name}, {reason}, cannot be fetched"


def named_or_default(backbone: str, pretrained: bool | str) -> str:
    """The name itself, or in place of ``auto`` that of :func:`default_backbone`."""
    return default_backbone(pretrained)[0] if backbone == AUTO else backbone


def backbones_to_choose_from(*, offline: bool) -> list[str]:
    """The documented short list, or without a hub what is installed or cached of it.

    Args:
        offline: ask no hub, also where one answers.
    """
    if not offline and hub_refusal() is None:
        return list(CANDIDATES)
    return [*offline_backbones(), *filter(needs_no_hub, CANDIDATES)]
