"""A small fit of small networks on small images, for the tests of its phases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from finetune.data.datamodule import ImageFolderDataModule
from finetune.training import best_epoch
from finetune.training.classifier import ImageClassifier
from finetune.training.phases.phased_fit import PhasedFit


@pytest.fixture(scope="session", autouse=True)
def every_epoch_is_written() -> Iterator[None]:
    """What a fit leaves behind is not to depend on how fast the machine is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(best_epoch, "SECONDS_BETWEEN", 0.0)
        yield


@pytest.fixture(scope="session")
def data_of():
    """A data module of a folder, its images found."""
    return _data_of


@pytest.fixture(scope="session")
def classifier_of():
    """A small classifier for a data module, with random weights."""
    return _classifier_of


@pytest.fixture(scope="session")
def run():
    """Fits by a strategy into a folder: the fit, the weights before it, the lines it said."""
    return _run


@pytest.fixture(scope="session")
def new_rates():
    """Makes a callback that notes the learning rate of each step."""
    return _Rates


class _Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def _data_of(colour_folder, **settings):
    settings = {"batch_size": 8, "val_fraction": 0.25, "test_fraction": 0.0, **settings}
    datamodule = ImageFolderDataModule(colour_folder, num_workers=0, cache="off", **settings)
    datamodule.setup("fit")
    return datamodule


def _classifier_of(datamodule, backbone="test_resnet", seed=0, **settings):
    torch.manual_seed(seed)
    return ImageClassifier(
        datamodule.class_names,
        backbone,
        pretrained=False,
        image_size=32,
        **{"batchnorm": "eval", "lr": 1e-3, "backbone_lr_factor": 1.0, **settings},
    )


def _run(
    colour_folder,
    folder,
    strategy,
    *,
    epochs=2,
    callbacks=(),
    resume=None,
    data=None,
    fit_options=None,
    **settings,
):
    datamodule = _data_of(colour_folder, **(data or {}))
    classifier = _classifier_of(datamodule, **settings)
    said = []

    def new_trainer(phase):
        return Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            max_epochs=phase.max_epochs,
            callbacks=[*callbacks, *phase.callbacks],
            accumulate_grad_batches=phase.accumulate_grad_batches,
            default_root_dir=folder,
        )

    fit = PhasedFit(
        classifier,
        datamodule,
        Path(folder),
        new_trainer,
        strategy=strategy,
        epochs=epochs,
        say=said.append,
        **(fit_options or {}),
    )
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    fit.run(resume)
    return fit, before, said
