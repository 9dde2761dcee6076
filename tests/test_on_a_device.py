"""Everything that answers for images does so on the device where a fit would run.

The device here is one beside the CPU on any machine, as strict as Apple's GPUs: its tensors hold
true values and say that they live on torch's ``meta`` device. What is true of an accelerator is
enforced: tensors of two devices do not meet, and no float64 ever gets there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from finetune import ImageClassifier
from finetune.combining.batchnorm import reestimate_batchnorm
from finetune.combining.bootstrap_heads import bootstrap_heads, ensemble_of_heads
from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.combining.soups import average_checkpoints
from finetune.combining.test_time_augmentation import VIEWS, chosen_views, mean_over_views
from finetune.data.datamodule import ImageFolderDataModule
from finetune.reporting.embeddings import embed
from finetune.reporting.explain import explain
from finetune.runtime import Runtime, device_of
from finetune.tasks.multiclass import MULTICLASS
from finetune.training.callbacks import StopOnNonFiniteLoss
from finetune.training.checkpoints import describe, plain, write_checkpoint
from finetune.training.features.extract import dataset_for, frozen_features
from finetune.training.weight_averaging import EMA, SWA

DEVICE = torch.device("meta")
# What has a result whose size or value is known only when all that was queued before is done.
WAITING = ("_local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.unique")


class Placed(Tensor):
    """A tensor on the device; ``held`` has its values."""

    held: Tensor
    is_meta = False  # which torch would load no weights into

    @staticmethod
    def __new__(cls, held: Tensor) -> Placed:
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Expected no {held.dtype} on the device, found {tuple(held.shape)}.")
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Placed({self.held})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Placed:
        return Placed(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(function, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """While it is entered, ``DEVICE`` exists; ``moved`` counts the tensors that went there.

    ``computed`` names what was done there, ``fetched`` what made the rest of the world wait for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0
        self.computed: list[str] = []
        self.fetched: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = _run(function, args, kwargs or {})
        if any(isinstance(each, Placed) for each in tree_leaves((args, kwargs))):
            self.computed.append(str(function))
            here = any(type(each) is Tensor for each in tree_leaves(result))
            if here or any(name in str(function) for name in WAITING):
                self.fetched.append(str(function))
        else:
            self.moved += isinstance(result, Placed)
        return result


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = tree_leaves((args, kwargs))
    placed = [each for each in given if isinstance(each, Placed)]
    elsewhere = [
        each for each in given if type(each) in (Tensor, torch.nn.Parameter) and each.dim() > 0
    ]
    name, target = str(function), kwargs.get("device")
    if placed and elsewhere and "copy_" not in name:
        raise RuntimeError(f"Expected tensors on one device, found two in {name}.")
    if placed and any(each.dtype == torch.float64 for each in elsewhere):
        raise TypeError(f"Expected no float64 on the device, found it in {name}.")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda each: each.held if isinstance(each, Placed) else each, (args, kwargs))
    result = function(*held[0], **held[1])
    stays = placed if target is None else torch.device(target) == DEVICE
    return tree_map(lambda each: _on_device(each, placed), result) if stays else result


def _on_device(value: Any, placed: list[Placed]) -> Any:
    if not isinstance(value, Tensor):
        return value
    same = [each for each in placed if each.held is value]  # an operation in place
    return same[0] if same else Placed(value)


@pytest.fixture
def device() -> Iterator[OtherDevice]:
    with OtherDevice() as device:
        yield device


@pytest.fixture
def runtime(device: OtherDevice, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """What every verb chooses: the device."""
    found = Runtime(DEVICE)
    monkeypatch.setattr(Runtime, "chosen", lambda *_: found)
    return found


@pytest.fixture
def data(colour_folder: Path) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        colour_folder, num_workers=0, cache="off", val_fraction=0.4, test_fraction=0.2
    )


def classifier_of(seed: int, backbone: str = "test_resnet") -> ImageClassifier:
    torch.manual_seed(seed)
    names = ("blue", "green", "red")
    return ImageClassifier(names, backbone, pretrained=False, image_size=32).eval()


def ensemble_of(*seeds: int, pooling: Any = "mean") -> Ensemble:
    backbones = ("test_resnet", "test_efficientnet")
    members = [ClassifierMember(classifier_of(s, backbones[s % 2]), f"{s}") for s in seeds]
    return Ensemble(members, pooling=pooling)


def written(classifier: ImageClassifier, path: Path) -> Path:
    entry = describe(
        classifier.class_names,
        classifier.backbone,
        classifier.preprocessing,
        network=classifier.spec,
    )
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=plain(dict(classifier.hparams)),
        entry=entry,
    )
    return path


def test_the_device_refuses_what_an_accelerator_refuses(device: OtherDevice) -> None:
    there = torch.ones(3).to(DEVICE)
    with pytest.raises(RuntimeError, match="one device"):
        there + torch.ones(3)
    for wide in (lambda: there.double(), lambda: torch.ones(3).double().to(DEVICE)):
        with pytest.raises(TypeError, match="float64"):
            wide()
    assert_close((there + 1).cpu(), torch.full((3,), 2.0))


@pytest.mark.filterwarnings("ignore:Fitted a temperature on")
@pytest.mark.parametrize("pooling", ["mean", "geometric", "vote"])
def test_members_answer_there_and_are_combined_here(runtime, data, pooling: str) -> None:
    whole = ensemble_of(0, 1, 2, pooling=pooling)
    here = whole.held_out(data)
    there = runtime.place(ensemble_of(0, 1, 2, pooling=pooling))
    assert device_of(there) == DEVICE
    answered = there.held_out(data)
    assert type(answered.member_logits) is Tensor
    assert_close(answered.member_logits, here.member_logits)
    metric = "accuracy" if pooling == "vote" else "nll"
    for chosen in (there.select(data, metric=metric), there.calibrate(data)):
        assert type(chosen.pool_held_out(chosen.held_out(data))) is Tensor


def test_an_ensemble_within_another_answers_there(runtime, data) -> None:
    def nested() -> Ensemble:
        return Ensemble([ensemble_of(0, 1), ClassifierMember(classifier_of(2), "2")])

    here = nested().held_out(data).member_logits
    assert_close(runtime.place(nested()).held_out(data).member_logits, here)


def test_a_shared_backbone_is_moved_and_kept_once(runtime, data, tmp_path: Path) -> None:
    classifier = runtime.place(classifier_of(0))
    images, workers = dataset_for(classifier, data, "train")
    features = frozen_features(classifier, images, num_workers=workers).tensor()
    labels = torch.tensor([image.label for image in data.images("train")])
    heads = ensemble_of_heads(classifier, bootstrap_heads(features, labels, 3, heads=3, l2=1.0))
    first, *others = [dict(each.named_parameters()) for each in heads.members]
    shared = [name for name in first if all(first[name] is other[name] for other in others)]
    assert len(shared) == len(first) - 2  # all but the final layer
    heads.save(tmp_path / "heads.ckpt")
    reread = Ensemble.from_file(tmp_path / "heads.ckpt")
    assert_close(reread.held_out(data).member_logits, heads.held_out(data).member_logits)


@pytest.mark.parametrize("batchnorm", ["average", "update"])
def test_soups_are_judged_there_and_come_back(runtime, device, data, tmp_path, batchnorm) -> None:
    fits = [classifier_of(0), classifier_of(2)]
    for fit in fits:
        fit.hparams["batchnorm"] = "train"
    paths = [written(fit, tmp_path / f"{index}.ckpt") for index, fit in enumerate(fits)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "chosen", lambda *_: Runtime())
        here = average_checkpoints(paths, datamodule=data, batchnorm=batchnorm, share="all")
    assert not any("convolution" in name for name in device.computed)
    there = average_checkpoints(paths, datamodule=data, batchnorm=batchnorm, share="all")
    assert any("convolution" in name for name in device.computed)
    assert {type(tensor) for tensor in there.state_dict.values()} == {Tensor}
    assert_close(there.state_dict, here.state_dict, rtol=1e-4, atol=1e-5)
    assert there.score.nll == pytest.approx(here.score.nll, rel=1e-4)


def test_batch_norm_statistics_are_those_of_the_cpu(runtime) -> None:
    batches = [torch.rand(5, 3, 32, 32), torch.rand(1, 3, 32, 32)]
    here, there = classifier_of(0), runtime.place(classifier_of(0))
    reestimate_batchnorm(here, batches)
    reestimate_batchnorm(there, batches)
    own = {name: tensor.cpu() for name, tensor in there.state_dict().items()}
    assert_close(own, dict(here.state_dict()), rtol=1e-4, atol=1e-6)


def test_views_are_made_there(runtime) -> None:
    images = torch.rand(2, 3, 32, 32)
    here, there = classifier_of(0), runtime.place(classifier_of(0))
    with torch.inference_mode():
        expected = mean_over_views(
            MULTICLASS, lambda v: here(v[0]), {0: images}, chosen_views(len(VIEWS))
        )
        found = mean_over_views(
            MULTICLASS, lambda v: there(v[0]), {0: images.to(DEVICE)}, chosen_views(len(VIEWS))
        )
    assert_close(found, expected)
    assert MULTICLASS.figures(found.to(DEVICE), torch.tensor([0, 1]).to(DEVICE))["nll"] > 0


def test_explanations_and_embeddings_are_those_of_the_cpu(runtime, colour_folder: Path) -> None:
    image = sorted(colour_folder.glob("red/*"))[0]
    (here,) = explain(ensemble_of(0, 1), image)
    (there,) = explain(runtime.place(ensemble_of(0, 1)), image)
    np.testing.assert_allclose(there.heat, here.heat, atol=1e-4)
    assert there.probability == pytest.approx(here.probability)
    rows = embed(classifier_of(0), [str(image)])
    np.testing.assert_allclose(
        embed(runtime.place(classifier_of(0)), [str(image)]), rows, rtol=1e-4
    )


@pytest.mark.parametrize("average", [EMA(0.5), SWA()], ids=["EMA", "SWA"])
def test_an_average_of_weights_makes_no_step_wait(runtime, device, average: Any) -> None:
    """A number asked of a device is there only when all that was queued before it is done."""
    classifier = runtime.place(classifier_of(0))
    average.setup(SimpleNamespace(checkpoint_callbacks=[]), classifier, "fit")
    model = average._average_model
    device.computed.clear()
    for _ in range(3):
        model.update_parameters(classifier)
    assert average.updates == 3
    assert device.computed
    assert not [name for name in device.computed if "_local_scalar_dense" in name]


class Steps(Callback):
    """Notes what was computed in each training step but the first and last of an epoch."""

    def __init__(self, device: OtherDevice) -> None:
        self.device = device
        self.steps: list[list[str]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.formats = [part.is_contiguous(memory_format=torch.channels_last) for part in batch[:1]]
        self.device.computed.clear()
        self.device.fetched.clear()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append([*self.device.fetched])
        assert any("convolution_backward" in name for name in self.device.computed)
        assert all(self.formats)


class TheDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None: ...


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_no_step_waits_for_the_device(
    runtime, device, data, tmp_path, augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither making views there nor forward, backward, update, figures and guards."""
    tensor = torch.tensor  # which makes a tensor on ``meta`` without a word to the mode

    def placed(*args: Any, device: Any = None, **options: Any) -> Tensor:
        made = tensor(*args, **options)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", placed)
    data.apply_recipe(augmentation=augmentation, batch_size=4)
    data._choice.wish = "on"
    classifier = runtime.place(classifier_of(0))
    data.prepare_for(classifier.preprocessing, DEVICE)
    steps = Steps(device)
    trainer = Trainer(
        strategy=SingleDeviceStrategy(DEVICE, accelerator=TheDevice()),
        callbacks=[StopOnNonFiniteLoss(), EMA(0.5), steps],
        max_epochs=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=data)
    assert len(steps.steps) >= 6
    assert steps.steps[0], "the look at the loss was not seen"
    a_pass = len(steps.steps) // 2
    inner = steps.steps[1 : a_pass - 1] + steps.steps[a_pass + 1 : -1]
    assert inner
    assert not any(inner), inner
