"""What enters the final layer, kept while a network answers: features at no further cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from finetune.training.classifier import ImageClassifier


@contextmanager
def recorded_features(classifier: ImageClassifier | None) -> Iterator[list[Tensor]]:
    """Keep what enters the final layer, ``(B, D)`` float32 on the CPU, a batch in turn.

    The list stays empty where there is no classifier, or none with a final layer of its own.
    """
    features: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        features.append(arguments[0].detach().flatten(1).float().cpu())

    head = None if classifier is None else classifier.network.get_classifier()
    handle = head.register_forward_pre_hook(keep) if isinstance(head, nn.Module) else None
    try:
        yield features
    finally:
        if handle is not None:
            handle.remove()
