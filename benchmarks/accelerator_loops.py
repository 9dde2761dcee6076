"""What ``bench_accelerator.py`` times: our loop, and one as it would be written by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from finetune import ImageClassifier, ImageFolderDataModule
from finetune.data.workers import usable_cores
from finetune.runtime import Runtime, fast_at_bf16
from finetune.training.callbacks import StopOnNonFiniteLoss

CLASSES = 4


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    backbones: Sequence[str]
    images: int
    batch: int
    steps: int
    side: int | None  # of what the network sees; None: the backbone's own
    epochs: int = 3  # the first of them is not counted


FULL = Sizes(("resnet50", "tf_efficientnet_lite0", "convnext_tiny"), 4000, 64, 100, 224)
TINY = Sizes(("test_resnet",), 24, 4, 3, 32, epochs=2)


def write_images(root: Path, count: int) -> Path:
    """JPEGs of 500 x 375 pixels: smooth noise with a colour for each class."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 200, (24, 32, 3), dtype=np.uint8)
        coarse[..., number % 3] //= 1 + number % CLASSES
        path = root / f"class_{number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(path, quality=90)
    return root


class Repeated(LightningDataModule):
    """The same batches, already on the device."""

    def __init__(self, batches: list[tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader[Any]:
        """They are no list: Lightning would take each batch for a loader."""
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class EpochClock(Callback):
    """Seconds of each epoch, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        wait_for(self.device)
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop it."""
        wait_for(self.device)
        self.seconds.append(time.perf_counter() - self.started)


def our_epochs(backbone: str, data: Any, sizes: Sizes, runtime: Runtime) -> float:
    """Seconds of our quickest epoch but the first."""
    classifier = new_classifier(backbone, sizes)
    classifier.network.to(memory_format=torch.channels_last)
    if isinstance(data, ImageFolderDataModule):
        data.prepare_for(classifier.preprocessing, runtime.device)
    clock = EpochClock(runtime.device)
    trainer = Trainer(
        accelerator="cpu" if runtime.device.type == "cpu" else "auto",
        devices=1,
        precision="bf16-mixed" if fast_at_bf16(runtime.device) else "32-true",
        callbacks=[StopOnNonFiniteLoss(), clock],
        max_epochs=sizes.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, datamodule=data)
    return min(clock.seconds[1:])


def bare_epochs(backbone: str, batches: Iterable[Any], sizes: Sizes, runtime: Runtime) -> float:
    """Seconds of the bare loop's quickest epoch but the first."""
    device = runtime.device
    network = new_network(backbone, sizes).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda")

    def epoch() -> None:
        for images, labels in batches:
            images = images.to(
                device, memory_format=torch.channels_last, non_blocking=device.type == "cuda"
            )
            labels = labels.to(device, non_blocking=device.type == "cuda")
            with autocast(device):
                loss = nn.functional.cross_entropy(network(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return min([seconds(device, epoch) for _ in range(sizes.epochs)][1:])


@torch.inference_mode()
def bare_evaluation(network: nn.Module, loader: DataLoader[Any], runtime: Runtime) -> list[Tensor]:
    return [network(images.to(runtime.device)).cpu() for images, _ in loader]


def folder_loader(backbone: str, root: Path, sizes: Sizes, *, training: bool) -> DataLoader[Any]:
    """ImageFolder through timm's transforms."""
    config = timm.data.resolve_model_data_config(new_network(backbone, sizes))
    if sizes.side:
        config["input_size"] = (3, sizes.side, sizes.side)
    workers = 0 if sizes is TINY else usable_cores()
    return DataLoader(
        ImageFolder(str(root), timm.data.create_transform(**config, is_training=training)),
        batch_size=sizes.batch,
        shuffle=training,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def folder_data(root: Path, sizes: Sizes, *, on_device: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        root,
        on_device=on_device,
        batch_size=sizes.batch,
        val_fraction=0.0,
        test_fraction=0.0,
        cache="memory" if sizes is TINY else "auto",
        num_workers=0 if sizes is TINY else None,
    )


def new_network(backbone: str, sizes: Sizes) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(backbone, num_classes=CLASSES)


def new_classifier(backbone: str, sizes: Sizes) -> ImageClassifier:
    torch.manual_seed(0)
    names = [f"class_{number}" for number in range(CLASSES)]
    return ImageClassifier(
        names,
        backbone,
        pretrained=False,
        image_size=sizes.side,
        batchnorm="train",
        strategy="all",
        lr=1e-4,
    )


def autocast(device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16) if fast_at_bf16(device) else nullcontext()


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
