"""What a run sends to Weights & Biases is read back from the file that an offline run leaves."""

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from finetune import ImageClassifier, ImageFolderDataModule
from finetune.cli import main
from finetune.reporting.thumbnails import read_located, read_thumbnail
from finetune.training.phases.phased_fit import PhasedFit
from finetune.training.tracking import (
    configured_loggers,
    finish_tracking,
    track_best,
    worst_predictions,
)

BLOCK = 32 * 1024


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format behind seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, pending = 7, b""
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pending += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def history(path: Path) -> dict[str, list[Any]]:
    """Every logged value by name."""
    values: dict[str, list[Any]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                name = "/".join(item.nested_key) or item.key
                values.setdefault(name, []).append(json.loads(item.value_json))
    return values


def fit(folder: Path, data: Path) -> tuple[ImageClassifier, Path]:
    torch.manual_seed(0)
    datamodule = ImageFolderDataModule(data, cache="off", test_fraction=0)
    classifier = ImageClassifier(
        datamodule.class_names, "test_resnet", pretrained=False, image_size=32
    )
    folder.mkdir()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=configured_loggers(WandbLogger(project="test", offline=True), folder),
        callbacks=[
            ModelCheckpoint(folder / "checkpoints", "best", monitor="val/nll"),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(classifier, datamodule)
    best = folder / "checkpoints" / "best.ckpt"
    track_best(trainer.loggers, best, partial(read_located, root=data))
    finish_tracking(folder)
    wandb.teardown()  # its writing process ends, so the file is complete
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    return classifier, log


@pytest.mark.filterwarnings("ignore:.*protobuf.*", "ignore::DeprecationWarning")
def test_figures_tables_and_checkpoint_are_found_in_the_file(
    tmp_path: Path, colour_folder: Path
) -> None:
    classifier, log = fit(tmp_path / "run", colour_folder)
    logged = history(log)
    logits, labels = classifier.answers["val"]
    accuracy = float((logits.argmax(-1) == labels).float().mean())
    assert logged["val/accuracy"][-1] == pytest.approx(accuracy)
    assert logged["best/accuracy"] == [pytest.approx(accuracy)]
    assert len(logged["val/nll"]) == len(logged["train/loss"]) == 2
    assert logged["val/worst_predictions/nrows"] == [len(labels)]
    assert logged["val/confusion_matrix_table/nrows"] == [9]
    names = [r.artifact.name for r in records(log) if r.WhichOneof("record_type") == "artifact"]
    assert any(name.endswith("-best") for name in names)


@pytest.mark.filterwarnings("ignore:.*protobuf.*", "ignore::DeprecationWarning")
def test_a_test_adds_its_figures_and_report_to_the_run_of_the_fit(colour_folder: Path) -> None:
    data = [f"--data.root={colour_folder}", "--data.cache=off", "--trainer.accelerator=cpu"]
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    logger = "lightning.pytorch.loggers.WandbLogger"
    tracked = [f"--trainer.logger={logger}", "--trainer.logger.offline=true"]
    assert main(["fit", *data, *small, *tracked, "--model.strategy=head", "--name=run"]) == 0
    best = "runs/run-1/checkpoints/best.ckpt"
    assert main(["test", *data, f"--ckpt_path={best}"]) == 0
    wandb.teardown()
    first, second = sorted(Path("runs/run-1/wandb").glob("offline-run-*/*.wandb"))
    ids = [
        record.run.run_id
        for log in (first, second)
        for record in records(log)
        if record.WhichOneof("record_type") == "run"
    ]
    assert len(set(ids)) == 1, "one run, resumed"
    logged = history(second)
    assert logged["test/classes/nrows"] == [3]
    (shown,) = logged["test/errors/nrows"]
    wrong = 7 * (1 - json.loads(Path("runs/run-1/metrics.json").read_text())["test"]["accuracy"])
    assert shown == round(wrong)
    assert logged["test/suspects/nrows"] == [7]
    assert "test/confusion/path" in logged
    names = [r.artifact.name for r in records(second) if r.WhichOneof("record_type") == "artifact"]
    assert f"{ids[0]}-report" in names


@pytest.mark.filterwarnings("ignore:.*protobuf.*", "ignore::DeprecationWarning")
def test_a_stopped_fit_sends_its_tables_and_a_resumed_one_goes_on_with_its_run(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [f"--data.root={colour_folder}", "--data.cache=off", "--trainer.accelerator=cpu"]
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    logger = "lightning.pytorch.loggers.WandbLogger"
    tracked = [f"--trainer.logger={logger}", "--trainer.logger.offline=true"]
    whole = PhasedFit.run

    def stopped(fit: PhasedFit, resume: Path | None = None) -> None:
        whole(fit, resume)
        raise SystemExit(130)  # Lightning's answer to Ctrl-C

    with monkeypatch.context() as patched:
        patched.setattr(PhasedFit, "run", stopped)
        assert main(["fit", *data, *small, *tracked, "--model.strategy=head", "--name=run"]) == 130
    assert main(["fit", "--resume=runs/run-1"]) == 0
    wandb.teardown()
    first, second = sorted(Path("runs/run-1/wandb").glob("offline-run-*/*.wandb"))
    assert "val/worst_predictions/nrows" in history(first)
    assert "best/accuracy" in history(first)
    assert first.stem == second.stem, "one run there"


def test_tensorboard_is_chosen_by_configuration_alone(colour_folder: Path) -> None:
    data = [f"--data.root={colour_folder}", "--data.cache=off", "--trainer.accelerator=cpu"]
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    chosen = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=board"]
    fit_options = ["--model.strategy=all", "--trainer.max_epochs=2", "--name=run"]
    assert main(["fit", *data, *small, *chosen, *fit_options]) == 0
    logged = [pair for path in sorted(Path("board").rglob("*tfevents*")) for pair in scalars(path)]
    names = [name for name, _ in logged]
    assert names.count("val/nll") == names.count("train/loss") == 2
    figures = json.loads(Path("runs/run-1/metrics.json").read_text())["val"]
    assert dict(logged)["best/nll"] == pytest.approx(figures["nll"], rel=1e-5)
    assert Path("runs/run-1/metrics.csv").is_file(), "the CSV log is always there"


def scalars(path: Path) -> Iterator[tuple[str, float]]:
    """Names and values of an event file: records of a length, its sum, the content, its sum."""
    from tensorboard.compat.proto.event_pb2 import Event

    content, position = path.read_bytes(), 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        event = Event.FromString(content[position + 12 : position + 12 + length])
        yield from ((value.tag, value.simple_value) for value in event.summary.value)
        position += length + 16


@pytest.mark.filterwarnings("ignore:.*protobuf.*", "ignore::DeprecationWarning")
def test_two_fits_of_one_process_are_two_runs(tmp_path: Path, colour_folder: Path) -> None:
    _, first = fit(tmp_path / "first", colour_folder)
    _, second = fit(tmp_path / "second", colour_folder)
    assert first.stem != second.stem
    assert history(second)["epoch"][-1] == 1


def test_loggers_are_those_that_were_configured(tmp_path: Path) -> None:
    own = CSVLogger(tmp_path / "own")
    for configured, expected in ((None, []), (True, []), (False, []), ([], []), (own, [own])):
        assert configured_loggers(configured, tmp_path) == expected


def test_without_an_account_the_run_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setattr("wandb.api", type("Api", (), {"api_key": None})())
    logger = WandbLogger(project="test")
    configured_loggers(logger, tmp_path)
    assert logger._wandb_init["mode"] == "offline"
    assert "logging offline" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*protobuf.*", "ignore::DeprecationWarning")
def test_several_labels_have_the_same_tables(tmp_path: Path, colour_folder: Path) -> None:
    from finetune.evaluation.label_evaluation import evaluate_labels
    from finetune.reporting.report import write_report
    from finetune.reporting.wandb_report import _tables
    from finetune.tasks.multilabel import MULTILABEL

    paths = sorted(str(path) for path in colour_folder.rglob("*.png"))[:6]
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0], [float("nan"), 1], [1, 0]])
    outputs = torch.tensor([[2.0, -1], [1, 1], [2, -2], [-1, -1], [1, 1], [-3, 0.5]])
    names = ["red", "round"]
    evaluation = evaluate_labels(targets.numpy(), outputs.numpy(), names, paths)
    tables = _tables(write_report(tmp_path / "report", evaluation).parent, evaluation)
    assert set(tables) == {"labels", "errors", "suspects"}
    assert [row[0] for row in tables["labels"].data] == names
    assert [row[2:4] for row in tables["errors"].data] == [
        ["red", "round"], ["red|round", "red"], ["round", "red|round"],
    ]  # fmt: skip
    worst = worst_predictions(
        MULTILABEL,
        outputs,
        targets,
        paths,
        names,
        thumbnail=read_thumbnail,
    )
    assert worst.data[0][2:4] == ["red", "round"]
    assert worst.data[0][0] is not None
