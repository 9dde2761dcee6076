"""Between two phases: the classifiers whose weights lie on the line from one to the other.

Fine-tuning leaves what the pretrained features knew for what the training images show; a point on
the way often answers held-out images better than either end.

Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022 (WiSE-FT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, Subset

from finetune.runtime import Runtime
from finetune.spec.protocols import Batches
from finetune.training.classifier import ImageClassifier
from finetune.training.model_selection import Candidate, standing
from finetune.training.temperature import rescaled

StateDict = Mapping[str, Tensor]

# Of the later phase. Each costs a pass over the held-out images, a few percent of an epoch.
SHARES = (0.25, 0.5, 0.75)


def interpolate(earlier: StateDict, later: StateDict, share: float) -> dict[str, Tensor]:
    """The weights at ``share`` of the way; integer buffers are the later ones."""
    return {
        name: torch.lerp(earlier[name], value, share) if value.is_floating_point() else value
        for name, value in later.items()
    }


def best_between(
    earlier: Candidate,
    later: Candidate,
    answer: Callable[[StateDict], Tensor],
    *,
    monitor: str,
    rescaled_head: Iterable[str] = (),
) -> Candidate:
    """The later candidate, or the best point on the way to it, where that is better.

    Args:
        earlier, later: of one network, with answers to the same held-out images.
        answer: logits ``(N, C)`` of these images with the given weights.
        monitor: the held-out figure that decides, such as ``val/nll``.
        rescaled_head: names of what makes the logits, where the confidence of each point is to be
            put right as that of the later checkpoint was.

    Returns:
        With the later one's ``share`` in it as a fact, where it is a point between.
    """
    assert later.outputs is not None
    head, task, labels = list(rescaled_head), later.task, later.outputs[1]
    best, highest = later, standing(task, *later.outputs, monitor)
    for share in SHARES:
        state = interpolate(earlier.state_dict, later.state_dict, share)
        logits = answer(state)
        if head:
            state, logits = rescaled(task, state, logits, labels, head)
        reached = standing(task, logits, labels, monitor)
        if reached > highest:
            best, highest = later.but(state, logits, share=share), reached
    return best


def answers_by_shares(
    classifier: ImageClassifier, loader: Batches[Sequence[Tensor]]
) -> Callable[[StateDict], Tensor]:
    """:func:`held_out_answers` of a loader's images; of several processes each runs a share."""
    runtime = Runtime()
    if runtime.world_size == 1 or not isinstance(loader, DataLoader):
        return partial(held_out_answers, classifier, loader)
    images: Any = loader.dataset
    own = runtime.share(range(len(images)))
    batches = DataLoader(
        Subset(images, own),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )

    def answer(state: StateDict) -> Tensor:
        told = runtime.gather(held_out_answers(classifier, batches, state) if own else None)
        dealt = [logits for logits in told if logits is not None]
        answers = torch.empty(len(images), dealt[0].shape[1])
        for rank, logits in enumerate(dealt):
            answers[rank :: runtime.world_size] = logits
        return answers

    return answer


def held_out_answers(
    classifier: ImageClassifier, batches: Iterable[Sequence[Tensor]], state: StateDict
) -> Tensor:
    """Logits ``(N, C)`` that a classifier would give with other weights; its own stay.

    Args:
        classifier: is in ``eval`` mode afterwards.
        batches: images, or activations where the classifier runs its upper half alone, first.
        state: a state dict of this classifier, on any device.
    """
    classifier.eval()
    # Where, and in the memory format in which, the classifier has its own.
    placed = {
        name: torch.empty_like(own).copy_(state[name])
        for name, own in classifier.state_dict().items()
    }
    with torch.no_grad():
        logits = [
            functional_call(classifier, placed, (images.to(classifier.device),)).float().cpu()
            for images, *_ in batches
        ]
    return torch.cat(logits)
