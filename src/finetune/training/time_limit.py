"""A fit within a time limit: a schedule that ends in time, and a stop in good order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from finetune.spec.protocols import Batches, PhaseData
from finetune.training.classifier import ImageClassifier

REHEARSED_STEPS = 3
# A batch that is only judged, against one that is learned from: no way back, no update.
JUDGING_COST = 0.4
SLACK = 1.15  # files, logs, figures


class Deadline(Callback):
    """Ends a fit in good order after the first step beyond a moment of ``time.monotonic()``."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        over = time.monotonic() >= self.deadline
        trainer.should_stop = trainer.should_stop or bool(trainer.strategy.broadcast(over))


def epochs_within(
    seconds: float,
    classifier: ImageClassifier,
    data: PhaseData,
    epochs: int,
    processes: int = 1,
) -> int:
    """As many of the epochs as there is time for, so that the learning rate still falls to its end.

    Some steps are rehearsed and timed; weights and buffers are as before afterwards.

    Args:
        seconds: until the end of the phase.
        classifier: ready to train.
        data: of the phase.
        epochs: at most; at least 1 is returned.
        processes: that share the batches of ``data``, each of which is as large as one step's.
    """
    train, val = data.train_dataloader(), data.val_dataloader()
    a_step = _seconds_a_step(classifier, train)
    an_epoch = SLACK * a_step * (len(train) + JUDGING_COST * len(val)) / processes
    return max(1, min(epochs, int(seconds / an_epoch)))


def _seconds_a_step(classifier: ImageClassifier, loader: Batches[Sequence[Tensor]]) -> float:
    """The quickest of some steps, without the update."""
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    random_state = torch.random.get_rng_state()
    classifier.train()
    times = []
    for _, batch in zip(range(REHEARSED_STEPS), loader, strict=False):
        started = time.perf_counter()
        images, labels = (part.to(classifier.device) for part in batch[:2])
        loss = classifier.loss(classifier(images), labels)
        torch.autograd.backward(loss)
        float(loss.detach())  # waits for an accelerator
        classifier.zero_grad()
        times.append(time.perf_counter() - started)
    classifier.load_state_dict(before)
    torch.random.set_rng_state(random_state)
    return min(times)
