"""Each option that ``fit --help`` shows works, or is refused in one line before the first epoch."""

from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer
from timm.optim import list_optimizers

from finetune.cli import main
from finetune.commands.trainer_options import check_amounts, check_no_null
from finetune.data.datamodule import ImageFolderDataModule
from finetune.documents import read_yaml, yaml_of
from finetune.errors import UsageError
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.optimizers import create_optimizer

KINDS = {
    "baseline": ["--model.backbone=baseline_mlp", "--model.image_size=16"],
    "head": ["--model.backbone=test_resnet", "--model.strategy=head", "--model.image_size=32"],
    "phases": [
        "--model.backbone=test_resnet",
        "--model.strategy=head-then-all",
        "--model.image_size=32",
    ],
}
SMALL = (
    "--model.pretrained=false",
    "--data.cache=off",
    "--data.num_workers=0",
    "--data.test_fraction=0",
    "--trainer.accelerator=cpu",
)

# Seen to throw a trained phase away, to answer wrongly, or to end in a traceback.
WORKS = {
    "validated too seldom": ["--trainer.check_val_every_n_epoch=5"],
    "validated within an epoch": ["--trainer.val_check_interval=0.5", "--data.batch_size=4"],
    "few held-out images": ["--trainer.limit_val_batches=1", "--data.batch_size=2"],
    "few training images": ["--trainer.limit_train_batches=1", "--data.batch_size=4"],
    "their early stopping": [
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
    ],
    "their checkpoints": [
        "--trainer.callbacks=ModelCheckpoint",
        "--trainer.callbacks.save_last=true",
    ],
}
REFUSED = {
    "--trainer.limit_val_batches": ["0", "0.01", "-1", "1.5"],
    "--trainer.limit_train_batches": ["0", "0.01", "-1"],
    "--trainer.overfit_batches": ["1", "0.5"],
    "--trainer.max_steps": ["0", "3"],
    "--trainer.max_epochs": ["0", "-1"],
    "--trainer.max_time": ["00:00:00:00", "soon"],
    "--trainer.fast_dev_run": ["true", "2"],
    "--trainer.barebones": ["true"],
    "--trainer.enable_checkpointing": ["false"],
    "--trainer.val_check_interval": ["0", "500", "-1"],
    "--trainer.check_val_every_n_epoch": ["0", "null"],
    "--trainer.accumulate_grad_batches": ["0"],
    "--trainer.gradient_clip_val": ["-1", ".nan", ".inf"],
    "--trainer.gradient_clip_algorithm": ["no"],
    "--trainer.accelerator": ["no", *([] if torch.cuda.is_available() else ["gpu"])],
    "--trainer.devices": ["-1", "0"],
    "--trainer.num_nodes": ["0"],
    "--trainer.strategy": ["no"],
    "--trainer.profiler": ["no"],
    "--trainer.reload_dataloaders_every_n_epochs": ["-1"],
    "--trainer.callbacks=EarlyStopping --trainer.callbacks.monitor": ["val_loss"],
    "--trainer.callbacks=ModelCheckpoint --trainer.callbacks.monitor": ["val_loss"],
    "--seed_everything": ["-1", "4294967296"],
    "--data.seed": ["-1"],
    "--data.max_pixels": ["0"],
    "--data.max_decoding_mb": ["0"],
    "--data.val_fraction": [".nan", "1"],
    "--model.optimizer": ["adahessian", "no"],
    "--model.views": ["0", "-1"],
    "--model.l2_sp": [".nan", "-1"],
    "--model.mixup_alpha": [".inf", "-1"],
    "--model.focal_gamma": [".inf"],
    "--model.lr": ["1e308", "0", ".nan"],
    "--model.warmup_fraction": [".nan", "1"],
    "--patience": ["-1"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WORKS)
def test_an_option_works_with_every_kind_of_fit(
    name: str, kind: str, colour_folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    call = [*KINDS[kind], *SMALL, *WORKS[name], "--trainer.max_epochs=2"]
    assert main(["fit", f"--data.root={colour_folder}", *call]) == 0
    (run,) = Path("runs").glob("*-1")
    files = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt"} <= files <= {"best.ckpt", "last.ckpt", "phase2.ckpt"}
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    if kind != "head":
        assert last.details["fit"]["stopped"] is not None, "theirs stands in the place of ours"
        assert "val" in last.details, "the end of the phase was never validated"


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        *((option, value, "baseline") for option in REFUSED for value in REFUSED[option]),
        *((option, values[0], "head") for option, values in REFUSED.items()),
    ],
)
def test_an_option_is_refused_before_anything_is_trained(
    option: str, value: str, kind: str, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [*KINDS[kind], *SMALL, *f"{option}={value}".split()]
    assert main(["fit", f"--data.root={colour_folder}", *call]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("finetune: Expected")
    assert not list(Path(".").rglob("*.ckpt"))
    assert not list(Path(".").glob("runs/*-1"))


@pytest.mark.parametrize(
    ("settings", "train", "val", "fits"),
    [
        ({}, 3, 1, True),
        ({"limit_val_batches": 0.5}, 3, 1, False),
        ({"limit_val_batches": 0.5}, 3, 2, True),
        ({"limit_val_batches": 0.5}, 3, 0, True),
        ({"limit_train_batches": 0.3}, 3, 1, False),
        ({"limit_train_batches": 0.34}, 3, 1, True),
        ({"val_check_interval": 3}, 3, 1, True),
        ({"val_check_interval": 4}, 3, 1, False),
        ({"val_check_interval": 4}, 3, 0, True),
        ({"val_check_interval": 2, "limit_train_batches": 1}, 3, 1, False),
        ({"val_check_interval": 0.2}, 3, 1, False),
    ],
)
def test_limits_have_to_leave_something(settings, train, val, fits) -> None:
    if fits:
        check_amounts(settings, train=train, val=val)
    else:
        with pytest.raises(UsageError, match="found"):
            check_amounts(settings, train=train, val=val)


# Kron is left out: it compiles its step, for half a minute.
@pytest.mark.parametrize("name", [n for n in list_optimizers() if "kron" not in n])
@pytest.mark.filterwarnings("ignore")
def test_each_optimizer_makes_a_step_or_is_refused(name: str) -> None:
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    before = matrix.detach().clone()
    try:
        optimizer = create_optimizer([{"params": [matrix], "lr": 0.1, "weight_decay": 0.0}], name)
    except UsageError:
        return
    for _ in range(8):  # some look ahead or warm up

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = matrix.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert not torch.equal(matrix, before)


@pytest.mark.parametrize("text", ["1e-4", "1e5", "08", "0o17", "1_000", "yes", "null", "~", "1.5"])
def test_text_that_looks_like_a_number_stays_text(text: str, tmp_path: Path) -> None:
    written = yaml_of({"name": text, "lr": 1e-5, "size": 32, "flag": True, "none": None})
    (tmp_path / "x.yaml").write_text(written)
    again = read_yaml(tmp_path / "x.yaml")
    assert again == {"name": text, "lr": 1e-5, "size": 32, "flag": True, "none": None}
    assert "lr: 1.0e-05" in written
    assert f"name: '{text}'" in written


def test_names_and_folders_like_numbers_are_read_again(
    colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("1e5").symlink_to(colour_folder)
    call = [*KINDS["baseline"], *SMALL, "--trainer.max_epochs=1"]
    assert main(["fit", "--data.root=1e5", "--name=1e-4", *call]) == 0
    config = Path("runs/1e-4-1/config.yaml")
    assert yaml.safe_load(config.read_text())["name"] == "1e-4"
    assert main(["fit", f"--config={config}"]) == 0
    assert Path("runs/1e-4-2/checkpoints/best.ckpt").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_a_trainer_may_validate_before_it_fits(colour_folder: Path, tmp_path: Path) -> None:
    data = ImageFolderDataModule(colour_folder, num_workers=0, cache="off")
    classifier = ImageClassifier(data.class_names, "baseline_mlp", pretrained=False, image_size=16)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    before = trainer.validate(classifier, data, verbose=False)
    trainer.fit(classifier, data)
    after = trainer.validate(classifier, data, verbose=False)
    assert before[0].keys() == after[0].keys()
    assert before != after


@pytest.mark.parametrize("owner", [ImageClassifier, ImageFolderDataModule, Trainer])
def test_null_is_refused_wherever_something_counts_in_its_place(owner: type) -> None:
    counting = {
        name: parameter.default
        for name, parameter in signature(owner).parameters.items()
        if parameter.default not in (None, parameter.empty)
    }
    check_no_null(counting, owner, option="--x.")
    for name in counting:
        with pytest.raises(UsageError, match=f"Expected --x.{name} to have a value"):
            check_no_null({**counting, name: None}, owner, option="--x.")


@pytest.mark.parametrize("option", ["model.optimizer", "data.cache", "trainer.num_nodes"])
def test_null_in_a_file_is_one_line(
    option: str, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, name = option.split(".")
    Path("null.yaml").write_text(f"{group}: {{{name}: null}}")
    call = [*KINDS["head"], *SMALL, f"--data.root={colour_folder}", "--config=null.yaml"]
    assert main(["fit", *call]) == 2
    assert f"Expected --{option} to have a value" in capsys.readouterr().err
    assert not Path("runs").exists()
