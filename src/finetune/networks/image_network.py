"""What every network here can do: timm's contract, which its classifiers and our baselines speak.

For type checkers alone; at runtime any such module will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:

    class ImageNetwork(nn.Module):
        """A classifier of images, cut into features and head."""

        def __call__(self, images: Tensor) -> Tensor:
            """Logits ``(B, C)`` of normalised images; Inception may add auxiliary ones."""

        pretrained_cfg: dict[str, Any]

        def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
            """A new final layer."""

        def no_weight_decay(self) -> set[str]:
            """Parameters that are not pulled to zero; not all networks name any."""

        def get_classifier(self) -> nn.Module:
            """The final layer; distilled vision transformers have two, in a tuple."""

        def forward_features(self, images: Tensor) -> Tensor:
            """What enters the head."""

        def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
            """Pooled and classified; with ``pre_logits`` all but the final layer."""

        def group_matcher(self, coarse: bool = False) -> Mapping[str, Any]:
            """How timm groups the parameters by depth."""

else:
    ImageNetwork = nn.Module
