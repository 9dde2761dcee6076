"""``fit --model.teacher``: one network learns what a teacher says of the training images."""

import os
from pathlib import Path

import pytest
import torch

from finetune import predict
from finetune.cli import main
from finetune.commands.distillation_targets import teacher_probabilities
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import CheckpointMismatchError
from finetune.prediction.predictor import load_model
from finetune.training.checkpoints import read_checkpoint, write_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.features.store import FeatureStore

SMALL = (
    "--model.pretrained=false",
    "--model.image_size=32",
    "--model.teacher_share=1",
    "--trainer.accelerator=cpu",
    "--data.augmentation=none",
    "--data.test_fraction=0",
    "--name=student",
)


@pytest.fixture(scope="module")
def teacher(write_probe) -> Path:
    return write_probe("teacher")


@pytest.fixture(scope="module")
def contrary_teacher(teacher: Path) -> Path:
    """Names the next class instead of the right one."""
    classifier = ImageClassifier.from_checkpoint(teacher)
    layer = classifier.network.get_classifier()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.roll(1, dims=0))
        layer.bias.copy_(layer.bias.roll(1, dims=0))
    checkpoint = read_checkpoint(teacher)
    path = teacher.with_name("contrary.ckpt")
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=checkpoint.hyper_parameters,
        entry=classifier.entry(),
    )
    return path


def test_rows_follow_the_images_and_columns_the_names(teacher: Path, colour_folder: Path) -> None:
    names = ("red", "blue", "green")
    data = ImageFolderDataModule(colour_folder, class_names=names, cache="off")
    found = teacher_probabilities(teacher, data)
    answers = predict(load_model(teacher), [image.path for image in data.images("train")])
    assert sorted(answers.class_names) == sorted(names)
    for column, name in enumerate(names):
        expected = answers.probabilities[:, answers.class_names.index(name)]
        torch.testing.assert_close(found[:, column], expected.float())


def test_a_teacher_is_asked_once_an_image(
    teacher: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path / "features")
    data = ImageFolderDataModule(colour_folder, cache="off")
    first = teacher_probabilities(teacher, data, store)
    monkeypatch.setattr(
        "finetune.prediction.inference", lambda *_, **__: pytest.fail("asked a second time")
    )
    assert torch.equal(teacher_probabilities(teacher, data, store), first)


@pytest.mark.parametrize(
    "how",
    [
        ("--model.backbone=baseline_cnn", "--model.strategy=all", "--trainer.max_epochs=12"),
        ("--model.backbone=test_resnet", "--model.strategy=partial:1", "--trainer.max_epochs=30"),
    ],
    ids=["live images", "kept activations"],
)
def test_with_a_share_of_one_the_student_follows_its_teacher_and_not_the_labels(
    how: tuple[str, ...], contrary_teacher: Path, colour_folder: Path
) -> None:
    arguments = ["fit", f"--data.root={colour_folder}", *SMALL, *how, "--model.lr=0.01"]
    assert main([*arguments, f"--model.teacher={contrary_teacher}"]) == 0
    # best.ckpt is picked by the labels, which this teacher contradicts.
    student = ImageClassifier.from_checkpoint("runs/student-1/checkpoints/last.ckpt")
    images = sorted(colour_folder.rglob("*.png"))
    taught = predict(load_model(contrary_teacher), images).labels
    learned = predict(student, images).labels
    agreeing = sum(a == b for a, b in zip(taught, learned, strict=True))
    assert agreeing >= 0.9 * len(images)
    assert "teacher" not in student.hparams, "a student's file needs no teacher"


KEEP = """
import torch
from lightning.pytorch.callbacks import Callback

class Keep(Callback):
    def on_fit_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_learn_the_same_from_one_teacher(
    contrary_teacher: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keep.py").write_text(KEEP)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    call = [
        *("fit", f"--data.root={colour_folder}", *SMALL, f"--model.teacher={contrary_teacher}"),
        *("--model.backbone=test_resnet", "--model.strategy=partial:1", "--model.lr=0.01"),
        *("--trainer.max_epochs=20", "--trainer.devices=2", "--trainer.strategy=ddp"),
        *("--imports=keep", "--trainer.callbacks=keep.Keep"),
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(call) == 0
    first, second = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Each process gets its part of the images with the teacher's rows for these.
    student = ImageClassifier.from_checkpoint(tmp_path / "runs/student-1/checkpoints/last.ckpt")
    images = sorted(colour_folder.rglob("*.png"))
    taught = predict(load_model(contrary_teacher), images).labels
    learned = predict(student, images).labels
    assert sum(a == b for a, b in zip(taught, learned, strict=True)) >= 0.9 * len(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.teacher=nothing.ckpt"], "found nothing at nothing.ckpt"),
        (["--model.teacher={teacher}", "--model.strategy=head"], "head-then-all"),
        (["--model.teacher={teacher}", "--model.mixup_alpha=0.2"], "leave one out"),
        (["--patience=-1"], "found -1; 0 stops no phase"),
        (["--data.balanced=true", "--model.class_weights=balanced"], "twice; leave one out"),
    ],
)
def test_bad_input_is_one_clear_line(
    options: list[str], message: str, teacher: Path, colour_folder: Path, capsys
) -> None:
    given = [option.format(teacher=teacher) for option in options]
    backbone = "--model.backbone=test_resnet"
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, backbone, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_teacher_of_other_classes_is_refused_by_name(teacher: Path, colour_folder: Path) -> None:
    names = ("blue", "green", "red", "violet")
    data = ImageFolderDataModule(colour_folder, class_names=names, cache="off")
    with pytest.raises(CheckpointMismatchError, match="violet"):
        teacher_probabilities(teacher, data)
