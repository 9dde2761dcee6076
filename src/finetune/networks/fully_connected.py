"""The baseline without convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import NetworkError
from finetune.networks.blocks import Size, check_choice, final_layer, hidden_layer

# Side of the grid that an image is averaged to, and neurons of the layers.
FULLY_CONNECTED_SIZES: dict[Size, tuple[int, tuple[int, ...]]] = {
    "tiny": (8, (64, 64)),
    "small": (16, (256, 128)),
    "base": (28, (512, 512, 256)),
}


class FullyConnectedBaseline(nn.Module):
    """Fully connected layers alone; what an image looks like is lost at the first of them.

    Args:
        size: the grid and the layers' widths, see ``FULLY_CONNECTED_SIZES``.
        grid_size: side of the grid that any image is averaged to; None takes the size's own.
        drop_rate: dropout before the final layer.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        size: Size = "small",
        grid_size: int | None = None,
        batch_norm: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("size", size, FULLY_CONNECTED_SIZES)
        side, widths = FULLY_CONNECTED_SIZES[size]
        side = side if grid_size is None else grid_size
        if side < 1:
            raise NetworkError(f"Expected a grid_size of at least 1, found {side}.")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grid = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())
        self.stem = hidden_layer(in_chans * side * side, widths[0], batch_norm=batch_norm)
        self.stages = nn.Sequential(
            *(
                hidden_layer(before, width, batch_norm=batch_norm)
                for before, width in pairwise(widths)
            )
        )
        self.num_features = self.head_hidden_size = widths[-1]
        self.fc = final_layer(self.num_features, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters' names by depth, for layer decay and freezing."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The final layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh final layer in place; 0 classes leave none. There is nothing to pool."""
        self.num_classes = num_classes
        self.fc = final_layer(self.num_features, num_classes).to(next(self.parameters()).device)

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to ``(B, num_features)``."""
        return self.stages(self.stem(self.grid(images)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features)`` to logits, or to the final layer's input."""
        features = functional.dropout(features, self.drop_rate, self.training)
        return features if pre_logits else self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(images))
