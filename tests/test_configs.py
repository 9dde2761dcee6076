"""Every shipped configuration parses, and fits two batches."""

from pathlib import Path

import pytest
import yaml

from finetune.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted((CONFIGS / "overlays").glob("*.yaml"))
# Small, so that it is the configuration that is tested and not this machine.
SMALL = ("--trainer.accelerator=cpu", "--model.image_size=32", "--data.cache=off")
SCRATCH = ("--model.backbone=test_resnet", "--model.pretrained=false")


def fit(folder: Path, *arguments: str) -> Path:
    smoke = f"--config={CONFIGS / 'overlays' / 'smoke.yaml'}"
    assert main(["fit", *arguments, smoke, f"--data.root={folder}", *SMALL]) == 0
    return (Path("runs") / "latest").resolve()


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit(config: Path, colour_folder: Path) -> None:
    own = yaml.safe_load(config.read_text())["model"]
    scratch = () if own["backbone"].startswith("baseline") else SCRATCH
    run = fit(colour_folder, f"--config={config}", *scratch)
    assert (run / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_overlays_fit(overlay: Path, colour_folder: Path) -> None:
    run = fit(colour_folder, f"--config={overlay}", *SCRATCH)
    assert (run / "checkpoints" / "best.ckpt").is_file()


def test_every_configuration_says_how_it_is_used() -> None:
    for path in [*RECIPES, *OVERLAYS]:
        assert "finetune fit" in path.read_text().split("\n\n")[0], path
