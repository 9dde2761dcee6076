"""Small images of three classes, and small fits of them with real accuracy, made in seconds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.data.datamodule import ImageFolderDataModule
from finetune.networks.splitting import split_at_parameters
from finetune.training.checkpoints import describe, write_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.linear_probe import fit_probe

CLASSES = ("dots", "plain", "stripes")
MakeCheckpoint = Callable[..., Path]


def _image(kind: str, generator: np.random.Generator) -> Image.Image:
    side = 40
    pixels = generator.normal(120, 35, size=(side, side, 3))
    rows, columns = np.indices((side, side))
    if kind == "stripes":
        pixels[rows // 4 % 2 == 0] += generator.uniform(15, 60)
    if kind == "dots":
        pixels[(rows // 4 % 2 == 0) & (columns // 4 % 2 == 0)] += generator.uniform(25, 90)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<split>/<class>/*.png``: 20 train, 20 val and 10 test images a class."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 20), ("test", 10)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                _image(name, generator).save(root / split / name / f"{index}.png")
    return root


def module_of(root: Path, class_names: Sequence[str] | None = None) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        root, class_names=class_names, num_workers=0, cache="off", batch_size=16
    )


@pytest.fixture
def datamodule(image_folder: Path) -> ImageFolderDataModule:
    return module_of(image_folder)


def _fitted(root: Path, seed: int, backbone: str, size: int, in_chans: int) -> ImageClassifier:
    """A random backbone with the best final layer on its features."""
    torch.manual_seed(seed)
    classifier = ImageClassifier(
        CLASSES, backbone=backbone, pretrained=False, image_size=size, in_chans=in_chans
    ).eval()
    loader = module_of(root).evaluation_dataloader(
        "train", preprocessings=(classifier.preprocessing,)
    )
    images, labels = zip(*[(views[0], labels) for views, labels in loader], strict=True)
    normalised = (torch.cat(images) / 255 - classifier.mean) / classifier.std
    # Running statistics that fit the images, as after a training in "train" mode.
    norms = [m for m in classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        classifier.network(normalised)
    for norm in norms:
        norm.momentum = 0.1
    classifier.eval()
    features = split_at_parameters(classifier.network, "head", ()).bottom(normalised)
    probe = fit_probe(features, torch.cat(labels), len(CLASSES), l2=1.0)
    head = classifier.network.get_classifier()
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    return classifier


@pytest.fixture(scope="session")
def make_checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Write a checkpoint; equal arguments give equal weights.

    ``noise`` moves all weights at random by that share of their size, ``head_noise`` only those of
    the final layer; ``order`` permutes the classes.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    fits: dict[tuple[object, ...], ImageClassifier] = {}

    def make(
        *,
        seed: int = 0,
        backbone: str = "test_resnet",
        size: int = 32,
        in_chans: int = 3,
        noise: float = 0.0,
        head_noise: float = 0.0,
        noise_seed: int = 0,
        order: tuple[int, ...] = (0, 1, 2),
        batchnorm: str = "eval",
        change: Callable[[dict[str, Tensor]], None] | None = None,
        class_names: Sequence[str] = CLASSES,
        **details: object,
    ) -> Path:
        key = (seed, backbone, size, in_chans)
        if key not in fits:
            fits[key] = _fitted(image_folder, *key)
        fit = fits[key]
        head = fit.network.get_classifier()
        generator = torch.Generator().manual_seed(noise_seed)
        state_dict = {}
        for name, tensor in fit.state_dict().items():
            own = tensor.clone()
            is_head = tensor.data_ptr() in (head.weight.data_ptr(), head.bias.data_ptr())
            share = head_noise if is_head and head_noise else noise
            if own.is_floating_point() and share and "running" not in name:
                scale = own.std() if own.numel() > 1 else own.abs().mean()
                own += share * scale * torch.randn(own.shape, generator=generator)
            state_dict[name] = own[list(order)] if is_head else own
        if change is not None:
            change(state_dict)
        names = tuple(class_names[index] for index in order)
        path = folder / f"{len(list(folder.iterdir()))}.ckpt"
        write_checkpoint(
            path,
            state_dict=state_dict,
            hyper_parameters={**fit.hparams, "class_names": names, "batchnorm": batchnorm},
            entry=describe(names, fit.backbone, fit.preprocessing, network=fit.spec, **details),
        )
        return path

    return make
