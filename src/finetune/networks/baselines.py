"""Small networks to train from scratch, speaking timm's classifier interface.

Importing this module registers them with timm, so ``timm.create_model("baseline_cnn")`` and all
that works on timm's models works on them:

``baseline_mlp``        fully connected layers alone
``baseline_cnn``        convolution, ReLU, pooling, repeated
``baseline_resnet``     the same with shortcuts around each pair of convolutions
``baseline_inception``  1x1, 3x3, 5x5 and pooling branches, joined by channel

Each takes ``size="tiny" | "small" | "base"`` and any image size: the convolutional ones pool
globally at their end, the fully connected one averages the image down to a grid at its beginning.
None has pretrained weights: that is what they are for.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from finetune.errors import PretrainedWeightsError
from finetune.networks.blocks import Size, check_choice
from finetune.networks.convolutional import CONVOLUTIONAL_SIZES, ConvolutionalBaseline
from finetune.networks.fully_connected import FullyConnectedBaseline


def is_baseline(name: str) -> bool:
    """Whether a name is that of one of our own networks, which learn from scratch."""
    return name.startswith("baseline_")


def baseline_mlp(pretrained: bool = False, **options: Any) -> nn.Module:
    """Fully connected layers alone; options of :class:`FullyConnectedBaseline`."""
    return _build(FullyConnectedBaseline, "baseline_mlp", pretrained, options)


def baseline_cnn(pretrained: bool = False, **options: Any) -> nn.Module:
    """Convolution, ReLU, pooling, repeated; options of :class:`ConvolutionalBaseline`."""
    options = {**options, "block_kind": "plain"}
    return _build(ConvolutionalBaseline, "baseline_cnn", pretrained, options)


def baseline_resnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """Residual blocks; options of :class:`ConvolutionalBaseline`."""
    options = {**options, "block_kind": "residual"}
    return _build(ConvolutionalBaseline, "baseline_resnet", pretrained, options)


def baseline_inception(pretrained: bool = False, **options: Any) -> nn.Module:
    """Inception blocks; options of :class:`ConvolutionalBaseline`."""
    options = {**options, "block_kind": "inception"}
    return _build(ConvolutionalBaseline, "baseline_inception", pretrained, options)


def _build(
    network_class: type[nn.Module], name: str, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Let timm build the network; weights can only come from a file of the user's own."""
    sources = (options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    given = any(_names_a_file(source) for source in sources)
    if pretrained and not given:
        raise PretrainedWeightsError(
            f"Expected a network with published weights, found {name}, which is trained from "
            "scratch; set pretrained to false, or to a checkpoint of your own."
        )
    if network_class is ConvolutionalBaseline:
        options = {"feature_cfg": _every_stage(options.get("size", "small")), **options}
    return build_model_with_cfg(network_class, name, pretrained, **options)


def _every_stage(size: Size) -> dict[str, Any]:
    """For timm's ``features_only``, which takes five stages for granted."""
    check_choice("size", size, CONVOLUTIONAL_SIZES)
    stages = len(CONVOLUTIONAL_SIZES[size][0])
    return {"out_indices": tuple(range(stages)), "flatten_sequential": True}


def _names_a_file(source: object) -> bool:
    """Whether a configuration of timm's, a dict or its dataclass, says where weights are."""
    values = source if isinstance(source, dict) else vars(source) if source else {}
    return bool(values.get("file") or values.get("state_dict"))


def _cfg(name: str) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 64, 64),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": None if name == "baseline_mlp" else "stem.0",
        "classifier": "fc",
    }


# timm reads this name when a network is registered.
default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": _cfg(name)
        for name in ("baseline_mlp", "baseline_cnn", "baseline_resnet", "baseline_inception")
    }
)
for _entry in (baseline_mlp, baseline_cnn, baseline_resnet, baseline_inception):
    register_model(_entry)
