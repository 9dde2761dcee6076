"""ImageClassifier: the one LightningModule, around any backbone or baseline by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import CheckpointMismatchError, TrainingError
from finetune.networks.factory import create_network, preprocessing_of
from finetune.preprocessing import Preprocessing
from finetune.training.checkpoints import ENTRY, describe, plain, read_checkpoint
from finetune.training.metrics import classification_metrics
from finetune.training.optimizers import create_optimizer, parameter_groups, warmup_cosine

Batch = tuple[Tensor, Tensor]
Stage = Literal["val", "test"]
# Weight of the auxiliary head's loss: Szegedy et al. 2015, "Going deeper with convolutions", 5.
AUXILIARY_LOSS_WEIGHT = 0.3


class ImageClassifier(LightningModule):
    """A network, the class names it answers with, and how it is trained.

    ``forward`` takes images ``(B, C, S, S)`` in ``[0, 1]``, normalises them as the backbone was
    pretrained, and returns logits ``(B, len(class_names))``.

    Args:
        class_names: one name a class, in the order of the logits; at least two, all different.
        backbone: any timm classifier, or a ``baseline_*`` to train from scratch.
        pretrained: true for the backbone's ImageNet weights, false for random ones, or the path of
            a ``.safetensors``, ``.pth`` or ``.ckpt`` file with weights of this backbone.
        image_size: side in pixels; the backbone's own where it is not given.
        in_chans: channels of the images, 1 for greyscale.
        drop_rate: dropout before the final layer, in [0, 1).
        drop_path_rate: stochastic depth, for backbones that have it, in [0, 1).
        network_options: further arguments of the network, as timm names them.
        batchnorm: "eval" keeps the pretrained statistics while everything else is fine-tuned, which
            little data needs; "train" updates them, as training from scratch needs; "frozen" also
            keeps scale and shift. The default, "auto", is "eval" for pretrained networks.
        optimizer: any of timm's, by name.
        lr: learning rate of the final layer.
        backbone_lr_factor: learning rate of the backbone, as a share of ``lr``.
        layer_decay: factor from each layer's learning rate to the one below it, in (0, 1].
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup_fraction: share of the steps over which the learning rate rises, in [0, 1).
        label_smoothing: probability taken from the label and spread over all classes, in [0, 1).
        class_weights: "balanced" weighs each class by the inverse of its number of images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        backbone: str = "resnet50",
        pretrained: bool | str = True,
        image_size: int | None = None,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        network_options: dict[str, Any] | None = None,
        batchnorm: Literal["auto", "eval", "train", "frozen"] = "auto",
        optimizer: str = "adamw",
        lr: float = 1e-3,
        backbone_lr_factor: float = 0.1,
        layer_decay: float = 1.0,
        weight_decay: float = 0.05,
        warmup_fraction: float = 0.1,
        label_smoothing: float = 0.1,
        class_weights: Literal["none", "balanced"] = "none",
    ) -> None:
        super().__init__()
        if batchnorm == "auto":
            batchnorm = "eval" if pretrained else "train"
        # What is needed only at birth is no hyperparameter: a reloaded checkpoint fetches nothing.
        self.save_hyperparameters(ignore=["pretrained"])
        self.hparams.update(plain({**self.hparams, "batchnorm": batchnorm}))
        self.class_names = _checked_class_names(class_names)
        self.backbone = str(backbone)
        self.network = create_network(
            self.backbone,
            len(self.class_names),
            pretrained=pretrained if isinstance(pretrained, bool) else str(pretrained),
            in_chans=in_chans,
            image_size=image_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            **(network_options or {}),
        )
        self.preprocessing: Preprocessing = preprocessing_of(
            self.backbone, in_chans=in_chans, image_size=image_size
        )
        for name in ("mean", "std"):
            statistics = torch.tensor(getattr(self.preprocessing, name)).view(1, -1, 1, 1)
            self.register_buffer(name, statistics, persistent=False)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.val_metrics = classification_metrics(len(self.class_names), prefix="val/")
        self.test_metrics = classification_metrics(len(self.class_names), prefix="test/")
        # The logits of the last pass over each stage's images, in the order of the loader.
        self.answers: dict[str, tuple[Tensor, Tensor]] = {}
        self._batches: list[tuple[Tensor, Tensor]] = []
        self.details: dict[str, Any] = {}

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> ImageClassifier:
        """Rebuild a classifier from a file alone, in ``eval`` mode, without any network.

        Raises:
            CheckpointError: the file is no checkpoint of ours.
            CheckpointMismatchError: its weights do not fit the network that it names.
        """
        checkpoint = read_checkpoint(path)
        classifier = cls(**{**checkpoint.hyper_parameters, "pretrained": False})
        classifier.load_weights(checkpoint.state_dict, source=str(path))
        classifier.details = checkpoint.details
        return classifier.eval()

    def load_weights(self, state_dict: dict[str, Tensor], *, source: str) -> None:
        """Load all of the tensors, or none.

        Raises:
            CheckpointMismatchError: names or shapes differ; the first ones are listed.
        """
        own = {key: value.shape for key, value in self.state_dict().items()}
        other = {key: value.shape for key, value in state_dict.items()}
        if own != other:
            differing = sorted(
                key for key in own.keys() | other.keys() if own.get(key) != other.get(key)
            )
            raise CheckpointMismatchError(
                f"Expected the tensors of {self.backbone} with {len(self.class_names)} classes, "
                f"found others in {source}: {', '.join(differing[:3])}; leave --model.* options "
                "to the checkpoint."
            )
        self.load_state_dict(state_dict)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of images in ``[0, 1]``."""
        logits, _ = self._logits(images)
        return logits

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and those of the auxiliary head where the network has one switched on."""
        answer = self.network((images - self.mean) / self.std)
        return (answer[0], answer[1]) if isinstance(answer, tuple) else (answer, None)

    def train(self, mode: bool = True) -> ImageClassifier:
        """Switch modes as usual, but keep batch norm as ``batchnorm`` says."""
        super().train(mode)
        if mode and self.hparams["batchnorm"] != "train":
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def on_fit_start(self) -> None:
        """Weigh the classes by the training images, now that they are known."""
        if self.hparams["class_weights"] == "balanced":
            by_class = self.trainer.datamodule.class_counts("train")  # type: ignore[attr-defined]
            counts = torch.tensor(list(by_class.values()))
            weights = counts.sum() / (len(counts) * counts.clamp(min=1))
            self.loss.weight = weights.to(self.device, self.mean.dtype)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        logits, auxiliary_logits = self._logits(images)
        loss = self.loss(logits, labels)
        if auxiliary_logits is not None:
            loss = loss + AUXILIARY_LOSS_WEIGHT * self.loss(auxiliary_logits, labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the validation images."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the test images."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """Probabilities ``(B, C)`` of a batch of images."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float().softmax(dim=-1)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the validation images."""
        self._conclude("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures of the test images."""
        self._conclude("test")

    def _evaluate(self, batch: Batch, stage: Stage) -> None:
        images, labels = batch
        logits = self(images)
        (self.val_metrics if stage == "val" else self.test_metrics).update(logits, labels)
        self._batches.append((logits.float(), labels))
        loss = self.loss(logits, labels)
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)

    def _conclude(self, stage: Stage) -> None:
        metrics = self.val_metrics if stage == "val" else self.test_metrics
        self.log_dict(metrics.compute())
        metrics.reset()
        logits, labels = zip(*self._batches, strict=True)
        self.answers[stage] = torch.cat(logits).cpu(), torch.cat(labels).cpu()
        self._batches.clear()

    def configure_optimizers(self) -> Any:
        """The optimizer with a real learning rate per group, and a schedule by steps."""
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise TrainingError(
                "Expected a fit with an end, since the learning rate falls towards it, found none; "
                "give --trainer.max_epochs or --trainer.max_steps."
            )
        hparams = self.hparams
        groups = parameter_groups(
            self.network,
            lr=hparams["lr"],
            backbone_lr_factor=hparams["backbone_lr_factor"],
            layer_decay=hparams["layer_decay"],
            weight_decay=hparams["weight_decay"],
        )
        optimizer = create_optimizer(groups, hparams["optimizer"])
        warmup_steps = int(hparams["warmup_fraction"] * steps)
        schedule = warmup_cosine(optimizer, int(steps), warmup_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the file self-sufficient."""
        details = dict(self.details)
        datamodule = getattr(self.trainer, "datamodule", None) if self._trainer else None
        if datamodule is not None:
            details["data"] = plain(dict(datamodule.hparams))
        if "val" in self.answers and datamodule is not None and self.trainer.world_size == 1:
            logits, labels = self.answers["val"]
            paths = [str(image.path) for image in datamodule.images("val")]
            details["val"] = {"logits": logits, "labels": labels, "paths": paths}
        checkpoint[ENTRY] = describe(self.class_names, self.backbone, self.preprocessing, **details)


def _checked_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(name) for name in class_names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise TrainingError(
            f"Expected at least two different classes, found {list(names)[:5]}; "
            "give one folder of pictures a class."
        )
    return names
