"""``torch.compile`` for the training steps of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetune.errors import UsageError


def compiled(network: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    """The network behind a compiler's backend; its tensors stay the same.

    Raises:
        UsageError: there is no such backend.
    """
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UsageError(
            f"Expected compile_backend to be one of "
            f"{', '.join(torch.compiler.list_backends())}, found {backend!r}."
        )
    return torch.compile(network, backend=backend)
