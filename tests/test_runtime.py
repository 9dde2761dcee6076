from pathlib import Path

import pytest
import torch
from lightning.fabric.accelerators import CUDAAccelerator, MPSAccelerator

from finetune import ImageClassifier, predict
from finetune.cli import main
from finetune.errors import UsageError
from finetune.processes import ProcessesNeeded
from finetune.runtime import Runtime, fast_at_bf16
from finetune.training.checkpoints import read_checkpoint


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch):
    """Let Lightning find so many CUDA devices, and an Apple GPU or none."""

    def found(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(MPSAccelerator, "is_available", lambda: mps)
        room = "lightning.fabric.accelerators"
        monkeypatch.setattr(f"{room}.cuda._get_all_visible_cuda_devices", lambda: [*range(cuda)])
        monkeypatch.setattr(f"{room}.mps._get_all_available_mps_gpus", lambda: [0] * mps)

    return found


@pytest.mark.parametrize(
    ("cuda", "mps", "accelerator", "devices", "expected"),
    [
        (0, False, "auto", "auto", "cpu"),
        (2, False, "cpu", 2, "cpu"),
        (2, False, "auto", "auto", "cuda:0"),
        (2, False, "gpu", 1, "cuda:0"),
        (2, False, "cuda", [1], "cuda:1"),
        (2, False, "auto", "1,", "cuda:1"),
        (0, True, "auto", "auto", "mps:0"),
        (0, True, "gpu", "auto", "mps:0"),
        (0, True, "mps", 1, "mps:0"),
    ],
)
def test_the_device_is_the_one_that_a_trainer_would_take(
    accelerators, cuda: int, mps: bool, accelerator: str, devices: object, expected: str
) -> None:
    accelerators(cuda, mps)
    assert Runtime.chosen(accelerator, devices).device == torch.device(expected)


def test_each_process_has_a_device_of_its_own(
    accelerators, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerators(4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Runtime.chosen("gpu", [2, 3]).device == torch.device("cuda:3")


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps", "tpu"])
def test_an_accelerator_that_is_not_there_is_refused(accelerators, accelerator: str) -> None:
    accelerators()
    with pytest.raises(UsageError, match=r"Expected an? .*accelerator"):
        Runtime.chosen(accelerator)


@pytest.mark.parametrize("cuda", [0, 2])
@pytest.mark.parametrize("devices", [None, [], "", {}, "nan", "x", "1e9", 0, -3, 1.5, [7], [0, 0]])
def test_devices_that_make_no_sense_are_refused(accelerators, cuda: int, devices: object) -> None:
    accelerators(cuda)
    with pytest.raises(UsageError, match="Expected devices to be auto"):
        Runtime.joined("auto", devices)


def test_more_processes_than_a_machine_can_bear_are_not_started(accelerators) -> None:
    accelerators(0)
    with pytest.raises(ProcessesNeeded):
        Runtime.joined("cpu", 8)
    for devices in (10_000, 2**70):
        with pytest.raises(UsageError, match="processes on this machine") as refused:
            Runtime.joined("cpu", devices)
        assert not isinstance(refused.value, ProcessesNeeded)


# Also where no Trainer is ever built, which would refuse it: a head in closed form.
FITS = [
    ["fit", "--model.strategy=head", "--trainer.accelerator=gpu"],
    ["fit", "--model.strategy=all", "--trainer.accelerator=gpu"],
]


@pytest.mark.parametrize("arguments", FITS, ids=lambda each: each[1])
def test_no_fit_runs_elsewhere_than_asked(
    accelerators, colour_folder: Path, tmp_path: Path, capsys, arguments: list[str]
) -> None:
    accelerators()
    data = [f"--data.root={colour_folder}", f"--runs={tmp_path / 'runs'}", "--data.cache=off"]
    model = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    assert main([*arguments, *data, *model]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "accelerator gpu" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("precision", "more"),
    [
        ("bf16-true", ["--model.class_weights=balanced"]),
        # AdamW's smallest denominator is nothing in 16 bits.
        ("16-true", ["--data.on_device=on", "--model.optimizer=sgd"]),
    ],
)
def test_phases_in_half_precision_are_compared_in_single(
    precision: str, more: list[str], colour_folder: Path, tmp_path: Path
) -> None:
    data = [f"--data.root={colour_folder}", f"--runs={tmp_path}", "--data.cache=off"]
    model = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    phases = ["--model.strategy=head-then-all", "--trainer.max_epochs=1"]
    where = ["--trainer.accelerator=cpu", f"--trainer.precision={precision}", *more]
    assert main(["fit", *data, *model, *phases, *where]) == 0
    for path in tmp_path.glob("test_resnet-1/checkpoints/[bp]*.ckpt"):
        state = read_checkpoint(path).state_dict
        assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
    best = ImageClassifier.from_checkpoint(tmp_path / "test_resnet-1/checkpoints/best.ckpt")
    assert len(predict(best, colour_folder)) == 36


@pytest.mark.parametrize(
    ("kind", "capability", "fast"),
    [("cpu", None, ""), ("cuda", (7, 5), ""), ("cuda", (8, 0), "GPU"), ("cuda", (9, 0), "GPU")],
)
def test_which_devices_are_fast_at_bfloat16(
    kind: str, capability: tuple[int, int] | None, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    assert fast_at_bf16(torch.device(kind)) == fast
