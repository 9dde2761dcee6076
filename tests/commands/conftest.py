"""Checkpoints with real accuracy on the colour folder, made without a fit."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from finetune import extras
from finetune.data.datamodule import ImageFolderDataModule
from finetune.networks.splitting import split_at_parameters
from finetune.training import best_epoch
from finetune.training.checkpoints import describe, plain, write_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.linear_probe import fit_probe

WriteCheckpoint = Callable[..., Path]
InstallRay = Callable[..., None]
SET_FOR_RAY = ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL", "RAY_DEDUP_LOGS")


@pytest.fixture
def install_ray(monkeypatch: pytest.MonkeyPatch) -> InstallRay:
    """Put a stand-in for Ray in place: what of it is called, and beside ``of_data`` of its data."""

    def install(functions: Mapping[str, Any], **of_data: Any) -> None:
        ray, data, context = ModuleType("ray"), ModuleType("ray.data"), SimpleNamespace()
        now = SimpleNamespace(get_current=lambda: context)
        vars(data).update({"DataContext": now, **of_data})
        vars(ray).update({"is_initialized": lambda: False, "data": data, **functions})
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.data", data)
        for variable in SET_FOR_RAY:  # so that what a verb sets is taken back
            monkeypatch.setenv(variable, "")
        is_there = extras._is_there
        monkeypatch.setattr(extras, "_is_there", lambda name: name == "ray" or is_there(name))

    return install


@pytest.fixture(scope="session", autouse=True)
def every_epoch_is_written() -> Iterator[None]:
    """What a fit leaves behind is not to depend on how fast the machine is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(best_epoch, "SECONDS_BETWEEN", 0.0)
        yield


@pytest.fixture(scope="session")
def write_probe(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WriteCheckpoint:
    """Write a linear probe on a random backbone; ``noise`` blurs its final layer."""
    folder = tmp_path_factory.mktemp("probes")
    module = ImageFolderDataModule(colour_folder, num_workers=0, cache="off")
    fits: dict[tuple[str, int], ImageClassifier] = {}

    def fitted(backbone: str, size: int) -> ImageClassifier:
        torch.manual_seed(0)
        classifier = ImageClassifier(
            module.class_names, backbone=backbone, pretrained=False, image_size=size
        ).eval()
        view = (classifier.preprocessing,)
        batches = list(module.evaluation_dataloader("train", preprocessings=view))
        images = torch.cat([views[0] for views, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        bottom = split_at_parameters(classifier.network, "head", ()).bottom
        probe = fit_probe(bottom(classifier.normalised(images)), labels, 3, l2=1.0)
        head = classifier.network.get_classifier()
        with torch.no_grad():
            head.weight.copy_(probe.weight)
            head.bias.copy_(probe.bias)
        return classifier

    def write(
        name: str,
        *,
        backbone: str = "test_resnet",
        size: int = 32,
        noise: float = 0.0,
        seed: int = 0,
        **data: object,
    ) -> Path:
        if (backbone, size) not in fits:
            fits[backbone, size] = fitted(backbone, size)
        fit = fits[backbone, size]
        head = fit.network.get_classifier()
        state_dict = {key: value.clone() for key, value in fit.state_dict().items()}
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in fit.state_dict().items():
            if tensor.data_ptr() == head.weight.data_ptr():
                state_dict[key] += (
                    noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
                )
        settings = {"root": str(colour_folder), "val_fraction": 0.4, "test_fraction": 0.2}
        path = folder / f"{name}.ckpt"
        write_checkpoint(
            path,
            state_dict=state_dict,
            hyper_parameters=plain(dict(fit.hparams)),
            entry=describe(
                fit.class_names,
                backbone,
                fit.preprocessing,
                network=fit.spec,
                data=plain({**dict(module.hparams), **settings, **data}),
            ),
        )
        return path

    return write
