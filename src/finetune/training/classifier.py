"""ImageClassifier: the one LightningModule, around any backbone or baseline by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from finetune.errors import UsageError
from finetune.networks.compiling import compiled
from finetune.networks.defaults import AUTO, named_or_default
from finetune.networks.factory import build_network, network_spec, preprocessing_of
from finetune.networks.freezing import apply_modes, freeze
from finetune.networks.normalising import normalised, register_statistics, unit_floats
from finetune.networks.pretrained import weights_licence
from finetune.spec.choices import TaskName
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.protocols import PhaseData
from finetune.spec.schema import one_of
from finetune.spec.settings import MODEL, check_settings, or_default
from finetune.tasks.known import TASKS
from finetune.tasks.losses import ClassWeights
from finetune.tasks.multilabel import asymmetric
from finetune.tasks.task import Task
from finetune.training.checkpoint_schema import check_tensors, damaged
from finetune.training.checkpoints import (
    ENTRY,
    Checkpoint,
    describe,
    plain,
    read_checkpoint,
)
from finetune.training.held_out_pass import HeldOutPass, Stage, fitted_on, logged_figures
from finetune.training.optimizers import OPTIMIZER_SETTINGS, scheduled_optimizer
from finetune.training.strategies import parse_strategy

# Images and labels; a third tensor holds a teacher's probabilities (B, C).
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
# Weight of the auxiliary head's loss: Szegedy et al. 2015, "Going deeper with convolutions", 5.
AUXILIARY_LOSS_WEIGHT = 0.3


class ImageClassifier(LightningModule):
    """A network, the class names it answers with, and how it is trained.

    ``forward`` takes images ``(B, C, S, S)``, bytes or floats in ``[0, 1]``, normalises them as the
    backbone was pretrained, and returns logits ``(B, len(class_names))``.

    Args:
        class_names: one name a class, in the order of the logits; at least two, all different.
        backbone: any timm classifier, a ``baseline_*`` to train from scratch, or auto: by rule.
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
        strategy: what learns when: head, head-then-all, gradual, partial:N, all, or auto.
        optimizer: any of timm's, by name.
        lr: learning rate of the final layer; chosen by the recipe where it is not given.
        backbone_lr_factor: learning rate of the backbone, as a share of ``lr``; likewise.
        layer_decay: factor from each layer's learning rate to the one below it, in (0, 1].
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup_fraction: share of the steps over which the learning rate rises, in [0, 1).
        snapshots: in how many cycles the learning rate of the last phase falls and starts anew;
            from 2 on the weights at the end of each are kept, for an ensemble out of one fit.
        label_smoothing: probability taken from the label and spread over all classes; likewise.
        class_weights: "balanced" weighs each class by the inverse of its number of images,
            "effective" more gently, by their effective number; "auto": as a recipe chooses.
        focal_gamma: above 0, focal loss: images answered well count less.
        negative_gamma: above 0, asymmetric loss: absent labels answered well count less.
        mixup_alpha, cutmix_alpha: above 0, images are mixed; metrics stay with the hard labels.
        l2_sp: strength of the pull back to the pretrained weights, instead of to zero.
        refit: fit a final layer that is delivered in closed form to val images too; likewise.
        views: random views of an image that are computed once and cached, where stages are frozen.
        teacher: checkpoint, for example of an ensemble, whose probabilities for the training
            images are learned beside the labels; ``finetune fit`` computes them once.
        teacher_share: weight of the teacher against the labels, in [0, 1].
        teacher_temperature: softens teacher and student before they are compared, above 0.
        compile_backend: a backend of ``torch.compile``, such as inductor, for the training steps on
            live images; the first ones take a minute, so it pays on accelerators and long fits.
        task: multiclass, multilabel or regression; ``finetune fit`` takes the data's.
    """

    preprocessing: Preprocessing
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        backbone: str = AUTO,
        pretrained: bool | str = True,
        image_size: int | None = None,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        network_options: dict[str, Any] | None = None,
        batchnorm: Literal["auto", "eval", "train", "frozen"] = "auto",
        strategy: str = "auto",
        optimizer: str = "adamw",
        lr: float | None = None,
        backbone_lr_factor: float | None = None,
        layer_decay: float = 1.0,
        weight_decay: float = 0.05,
        warmup_fraction: float = 0.1,
        snapshots: int = 1,
        label_smoothing: float | None = None,
        class_weights: Literal["auto", ClassWeights] = "auto",
        focal_gamma: float = 0.0,
        negative_gamma: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        l2_sp: float = 0.0,
        refit: bool | None = None,
        views: int = 3,
        teacher: str | None = None,
        teacher_share: float = 0.5,
        teacher_temperature: float = 2.0,
        compile_backend: str | None = None,
        task: TaskName = "multiclass",
        _like: Checkpoint | None = None,
    ) -> None:
        super().__init__()
        parse_strategy(strategy)  # before weights are looked for, which may take a while
        backbone = named_or_default(str(backbone), pretrained)
        if batchnorm == "auto":
            batchnorm = "eval" if pretrained else "train"
        # Needed only at birth, so no hyperparameter: a reloaded checkpoint fetches nothing.
        birth = ["pretrained", "teacher", "compile_backend", "task", "_like"]
        self.save_hyperparameters(ignore=birth)
        resolved = {"batchnorm": batchnorm, "class_weights": class_weights.replace("auto", "none")}
        self.hparams.update(plain({**self.hparams, **resolved}))
        if _like is None:  # what is rebuilt was judged when it was read
            check_settings(self.hparams, MODEL, option="model.")
        check_settings({"task": task}, {"task": one_of(*TASKS)}, option="model.")
        self.task: Task = TASKS[task] if _like is None else _like.task
        if not self.task.has_choices:
            self.hparams["label_smoothing"] = label_smoothing or 0.0
        self.class_names = self.task.checked_names(class_names)
        self.backbone = str(backbone)
        if _like is None:
            seen: dict[str, Any] = {"in_chans": in_chans, "image_size": image_size}
            self.spec = network_spec(self.backbone, **seen, **plain(network_options or {}))
            self._see_by(preprocessing_of(self.backbone, **seen))
        else:
            self.spec = _like.network
            self._see_by(_like.preprocessing)
        outputs = self.task.number_of_outputs(self.class_names)
        self.unit = self.task.unit(outputs)
        self.network = build_network(
            self.spec,
            outputs,
            pretrained=pretrained if isinstance(pretrained, bool) else str(pretrained),
            source=self.backbone,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if batchnorm == "frozen":
            freeze(self.network, (), batch_norm="frozen")
        self.mix = self.task.mixing(outputs, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
        if teacher is not None and self.mix is not None:
            raise UsageError(
                "Expected a teacher without --model.mixup_alpha and --model.cutmix_alpha, found "
                "both: it answers for whole images; leave one out."
            )
        self.teacher = teacher
        # In a list, so that it is no second submodule with the same weights.
        self._compiled = [compiled(self.network, compile_backend)] if compile_backend else []
        self.cycles = 1  # of the learning rate, in the present phase
        self.apply_recipe()
        # Set while lower stages are frozen and their activations cached: batches then hold these
        # activations, and this is what turns them into logits.
        self.upper: Callable[[Tensor], Tensor] | None = None
        # The logits of the last pass over each stage's images, in the order of the loader.
        self.answers: dict[str, tuple[Tensor, Tensor]] = {}
        self._pass = HeldOutPass()
        self.details: dict[str, Any] = {}
        if licence := weights_licence(self.backbone, pretrained):
            self.details["licence"] = licence

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> ImageClassifier:
        """Rebuild a classifier from a file alone, in ``eval`` mode, without any network.

        Raises:
            CheckpointError: the file is no checkpoint of ours.
            CheckpointMismatchError: its weights do not fit the network that it names.
        """
        return cls.rebuilt(read_checkpoint(path))

    @classmethod
    def rebuilt(cls, checkpoint: Checkpoint) -> ImageClassifier:
        """The same from what was read of a file."""
        try:
            classifier = cls.like(checkpoint)
        except Exception as error:  # whatever a stranger's settings make a network say
            raise damaged(checkpoint.path, f"it describes no network ({error})") from error
        classifier.load_weights(checkpoint.state_dict, source=str(checkpoint.path))
        classifier.details = checkpoint.details
        return classifier

    @classmethod
    def like(cls, described: Checkpoint) -> ImageClassifier:
        """The classifier of a description with random weights, in ``eval`` mode; asks nobody."""
        return cls(**{**described.hyper_parameters, "pretrained": False}, _like=described).eval()

    def see_as(self, checkpoint: Checkpoint) -> None:
        """Prepare images as a checkpoint did, whatever timm says today, under its licence."""
        if licence := checkpoint.details.get("licence"):
            self.details["licence"] = licence
        self._see_by(checkpoint.preprocessing.with_image_size(self.hparams["image_size"]))

    def _see_by(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        register_statistics(self, preprocessing.mean, preprocessing.std)

    def load_weights(self, state_dict: dict[str, Tensor], *, source: str) -> None:
        """Load all of the tensors, or none.

        Raises:
            CheckpointMismatchError: names or shapes differ; the first ones are listed.
        """
        expected = f"{self.backbone} with {len(self.class_names)} classes"
        check_tensors(self.state_dict(), state_dict, source, expected=expected)
        self.load_state_dict(state_dict)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)``, or numbers, of images, bytes or floats in ``[0, 1]``."""
        return self.unit(self._logits(images)[0])

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (numbers standardised), and those of an auxiliary head that is switched on."""
        if self.upper is not None:
            return self.upper(images), None
        network = self._compiled[0] if self._compiled and self.training else self.network
        answer = network(self.normalised(images))
        return (answer[0], answer[1]) if isinstance(answer, tuple) else (answer, None)

    def normalised(self, images: Tensor) -> Tensor:
        """What the network takes of images, bytes or floats in ``[0, 1]``."""
        return normalised(images, self.mean, self.std)

    def setting(self, name: str) -> Any:
        """A hyperparameter, or what counts in its place where nobody has chosen one."""
        return or_default(name, self.hparams[name])

    def apply_recipe(self, **chosen: Any) -> None:
        """Take over hyperparameters that a recipe has chosen."""
        self.hparams.update(plain(chosen))
        known = {name: self.setting(name) for name in ("label_smoothing", "focal_gamma")}
        self.loss = asymmetric(self.task.loss(**known), self.setting("negative_gamma"))

    def train(self, mode: bool = True) -> ImageClassifier:
        """Switch modes as usual, but keep frozen parts and batch norm as they are meant to be."""
        super().train(mode)
        apply_modes(self.network, batch_norm=self.hparams["batchnorm"])
        return self

    def on_fit_start(self) -> None:
        """Weigh the classes by the training images, now that they are known."""
        if (kind := self.hparams["class_weights"]) != "none":
            by_class = self.trainer.datamodule.class_counts("train")  # type: ignore[attr-defined]
            weights = self.task.class_weights(kind, list(by_class.values()))
            assert weights is not None
            self.loss.weight = weights.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels, *soft_labels = batch
        targets, *taught = map(self.unit.standardised, (labels, *soft_labels))
        if self.mix is not None and self.upper is None:
            images, targets = self.mix(unit_floats(images), labels)
        logits, auxiliary_logits = self._logits(images)
        logits = logits.float()
        loss = self.loss(logits, targets)
        if auxiliary_logits is not None:
            loss = loss + AUXILIARY_LOSS_WEIGHT * self.loss(auxiliary_logits.float(), targets)
        if taught:
            temperature = self.hparams["teacher_temperature"]
            distilled = self.task.distillation_loss(logits, taught[0], temperature=temperature)
            loss = torch.lerp(loss, distilled, self.hparams["teacher_share"])
        # Of its share alone: one of several processes asks for it while it runs.
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the validation images."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the test images."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the validation images."""
        self._conclude("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures of the test images."""
        self._conclude("test")

    def _evaluate(self, batch: Batch, stage: Stage) -> None:
        images, labels = batch[:2]
        logits = self(images).float()
        self._pass.add(logits, labels)
        loss = self.loss(*map(self.unit.standardised, (logits, labels)))
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)

    def _conclude(self, stage: Stage) -> None:
        answers = self.answers[stage] = self._pass.conclude(self, stage)
        self.log_dict(logged_figures(self.task, answers, stage))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer with a real learning rate per group, and a schedule by steps."""
        return scheduled_optimizer(
            self.network,
            {name: self.setting(name) for name in OPTIMIZER_SETTINGS},
            steps=self.trainer.estimated_stepping_batches,
            cycles=self.cycles,
            # Lightning clips no gradients of a fused one.
            fused=self.device.type == "cuda" and not self.trainer.gradient_clip_val,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the file self-sufficient."""
        datamodule = getattr(self.trainer, "datamodule", None) if self._trainer else None
        # Training may use another memory format; files hold the usual one.
        state_dict = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: value.contiguous() for name, value in state_dict}
        checkpoint[ENTRY] = self.entry(datamodule)
        # The same settings, with the places of this machine.
        checkpoint.pop("datamodule_hyper_parameters", None)

    def entry(self, datamodule: PhaseData | None = None) -> dict[str, Any]:
        """What a checkpoint says beside the weights; see ``finetune.training.checkpoints``."""
        fitted = {} if datamodule is None else fitted_on(datamodule, self.answers.get("val"))
        details = {**self.details, **fitted}
        known = (self.class_names, self.backbone, self.preprocessing)
        return describe(*known, network=self.spec, task=self.task, **details)
