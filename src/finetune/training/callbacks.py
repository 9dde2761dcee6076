"""Callbacks of every fit: repeatable randomness, a stop where nothing is gained, L2-SP."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor
from typing_extensions import override

from finetune.errors import TrainingError
from finetune.networks.final_layer import head_parameters
from finetune.networks.image_network import ImageNetwork
from finetune.runtime import Runtime

# A look at the loss makes an accelerator wait, so not at every step.
LOOK_EVERY_STEPS = 50


class EpochSeed(Callback):
    """Seeds dropout, stochastic depth and mixing anew each epoch, from ``(seed, epoch)`` alone.

    A fit resumed from the end of an epoch then draws what the undisturbed one would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mixed = (self.seed * 1_000_003 + trainer.current_epoch) * 1009 + trainer.global_rank
        torch.manual_seed(mixed % 2**63)


class StopOnNonFiniteLoss(Callback):
    """Ends the fit with a remedy before weights that are no numbers are validated or saved."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if batch_idx % LOOK_EVERY_STEPS == 0 or trainer.is_last_batch:
            self._look(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loss is None or bool(torch.isfinite(self._loss).all()):
            return
        groups = trainer.optimizers[0].param_groups
        rate = max(group.get("initial_lr", group["lr"]) for group in groups)
        raise TrainingError(
            f"Expected a finite loss, found {float(self._loss)} in epoch "
            f"{trainer.current_epoch + 1}, step {trainer.global_step} (learning rate {rate:.2g}); "
            f"lower it (--model.lr {rate / 10:.1g}), or use --trainer.precision 32-true; the "
            "checkpoints of earlier epochs are kept."
        )


class SameBuffers(Callback):
    """Validates one classifier in all processes: each counts batch-norm statistics of its own."""

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            Runtime().equalise(pl_module)


class StopWhenNotBetter(EarlyStopping):
    """Ends a phase that has not bettered the best of the phases before it for some epochs.

    A class of its own, so that a user's ``EarlyStopping`` may stand beside it.

    Args:
        monitor: the figure.
        higher_is_better: its direction.
        patience: epochs, at least 1.
        best: the figure to better; None where there is none yet.
    """

    def __init__(
        self, monitor: str, *, higher_is_better: bool, patience: int, best: float | None
    ) -> None:
        mode = "max" if higher_is_better else "min"
        super().__init__(monitor, mode=mode, patience=patience, check_finite=False)
        if best is not None:
            self.best_score = torch.tensor(best)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was waited for, but the patience that is asked for now."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class L2SP(Callback):
    """Pulls weights back to where the fit began: ``alpha / 2 * ||w - w0||^2`` (Li et al. 2018).

    The final layer has no pretrained weights and is pulled to zero, with ``beta``. The gradient is
    added to that of the loss, once an optimizer step. One instance serves all phases of a fit; the
    starting point is part of its state, so a resumed fit is pulled to the same place.
    """

    def __init__(self, alpha: float, beta: float = 0.01) -> None:
        self.alpha = alpha
        self.beta = beta
        self.start: dict[str, Tensor] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = cast(ImageNetwork, pl_module.network)
        head = head_parameters(network)
        for name, value in network.named_parameters():
            if name not in head and name not in self.start:
                self.start[name] = value.detach().cpu().clone()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        network = cast(ImageNetwork, pl_module.network)
        for name, value in network.named_parameters():
            if value.grad is None:
                continue
            if name in self.start:
                self.start[name] = self.start[name].to(value.device)
                value.grad.add_(value.detach() - self.start[name], alpha=self.alpha)
            elif value.ndim > 1:
                value.grad.add_(value.detach(), alpha=self.beta)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["start"]
