"""What a fit's recipe chooses, as it is built, printed and written."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from finetune.cli import main
from finetune.commands.apply_recipe import apply_recipe
from finetune.commands.trainer import FinetuneCLI
from finetune.data.datamodule import ImageFolderDataModule
from finetune.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

CPU = ("--trainer.accelerator=cpu", "--data.cache=off")
BASELINE = ("--model.backbone=baseline_cnn", "--model.pretrained=false")
SMALL = ("--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32")


def recipe_for(folder: Path, *options: str, **limits: float):
    cli = FinetuneCLI("fit", [f"--data.root={folder}", *CPU, *options])
    cli.datamodule.setup("fit")
    return cli, {choice.name: choice for choice in apply_recipe(cli, **limits)}


def test_python_alone_has_sensible_values(colour_folder: Path) -> None:
    datamodule = ImageFolderDataModule(colour_folder)
    assert (datamodule.batch_size, datamodule.augmentation) == (32, "light")
    assert datamodule.hparams["batch_size"] == 32
    assert datamodule.hparams["augmentation"] == "light"


def test_few_images_get_small_batches_everywhere(colour_folder: Path) -> None:
    cli, recipe = recipe_for(colour_folder, *SMALL)
    assert recipe["batch_size"].value == cli.datamodule.batch_size == 8
    assert cli.datamodule.hparams["batch_size"] == cli.config.data.batch_size == 8
    assert cli.datamodule.train_dataloader().batch_size == 8


def test_where_images_are_augmented_is_said_and_never_written(colour_folder: Path) -> None:
    _, recipe = recipe_for(colour_folder, *SMALL)
    assert "on_device" not in recipe
    assert recipe["precision"].value == "32-true"
    cli, recipe = recipe_for(colour_folder, *SMALL, "--data.on_device=on")
    assert (recipe["on_device"].value, recipe["on_device"].reason) == ("yes", "as given")
    assert cli.config.data.on_device == "on"


def test_by_hand_wins(colour_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    own = {"batch_size": 16, "augmentation": "strong"}
    config.write_text(yaml.safe_dump({"data": own, "model": {"class_weights": "effective"}}))
    cli, recipe = recipe_for(
        colour_folder, *BASELINE, f"--config={config}", "--model.image_size=96"
    )
    for name, value in {**own, "class_weights": "effective", "image_size": 96}.items():
        assert (recipe[name].value, recipe[name].reason) == (value, "as given")
    assert cli.datamodule.augmentation == "strong"
    assert cli.model.hparams["class_weights"] == "effective"
    assert cli.model.preprocessing.image_size == 96


@pytest.mark.parametrize(("side", "size"), [(80, 64), (56, 64), (36, 32)])
def test_a_baseline_is_built_for_the_size_of_the_images(
    side, size, colour_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    for path in colour_folder.glob("*/*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((side + 20, side)).save(folder / path.parent.name / path.name)
    cli, recipe = recipe_for(folder, *BASELINE)
    assert recipe["image_size"].value == size
    assert cli.model.preprocessing.image_size == cli.config.model.image_size == size


def test_a_network_made_for_one_size_keeps_it(colour_folder: Path) -> None:
    cli, recipe = recipe_for(colour_folder, "--model.backbone=test_vit", "--model.pretrained=false")
    assert recipe["image_size"].value == cli.model.preprocessing.image_size == 160
    assert recipe["image_size"].reason != "as given"


def test_too_little_time_means_the_final_layer_alone(colour_folder: Path) -> None:
    cli = FinetuneCLI("fit", [f"--data.root={colour_folder}", *CPU, *SMALL])
    cli.config.model.pretrained = True  # as if: there are no weights to fetch
    cli.datamodule.setup("fit")
    recipe = {choice.name: choice for choice in apply_recipe(cli, seconds=10.0)}
    assert recipe["strategy"].value == "head"
    assert "10 s" in recipe["strategy"].reason


def test_choices_are_printed_saved_and_repeated(colour_folder: Path, capsys) -> None:
    fit = ["fit", f"--data.root={colour_folder}", *CPU]
    assert main([*fit, *BASELINE, "--trainer.max_epochs=2"]) == 0
    printed = capsys.readouterr().out
    run = Path("runs/baseline_cnn-1")
    text = (run / "config.yaml").read_text()
    config = yaml.safe_load(text)
    expected = {"model.image_size": 64, "model.class_weights": "none", "data.batch_size": 8}
    for place, value in expected.items():
        section, name = place.split(".")
        assert config[section][name] == value
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert f"# {line}" in text
        assert "as given" not in line
    assert config["data"]["augmentation"] in ("light", "medium")
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best.details["data"]["batch_size"] == 8
    assert best.hyper_parameters["image_size"] == 64
    assert main(["fit", f"--config={run / 'config.yaml'}"]) == 0
    again = yaml.safe_load(Path("runs/baseline_cnn-2/config.yaml").read_text())
    assert again == {**config, "ckpt_path": None}
    assert "as given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.batch_size=0", "at least 1"),
        ("--data.batch_size=many", "many"),
        ("--data.augmentation=wild", "light"),
        ("--model.class_weights=heavy", "balanced"),
        ("--model.image_size=0", "image_size"),
    ],
)
def test_wrong_values_are_one_clear_line(option, message, colour_folder: Path, capsys) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *CPU, *SMALL, option]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
