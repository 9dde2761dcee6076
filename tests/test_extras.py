"""A lean installation fits, tests and predicts; what it lacks is one line with the command."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from finetune.extras import EXTRAS, remedy

ROOT = Path(__file__).parents[1]
# Finders that pass over some packages stand for an installation without them.
LEAN = """
import sys
blocked = {blocked!r}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in blocked:
            return self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        search = getattr(self.finder, "find_distributions", None)
        return [] if search is None or context.name in blocked else search(context)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from finetune.cli import main
for call in {calls!r}:
    print("->", main(call), flush=True)
"""


def lean(*calls: list[str]) -> subprocess.CompletedProcess[str]:
    blocked = sorted({name for packages in EXTRAS.values() for name in packages} | {"onnxruntime"})
    program = LEAN.format(blocked=blocked, calls=[*calls])
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_fit_test_and_predict_need_no_extra(colour_folder: Path, tmp_path: Path) -> None:
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    fit = ["fit", f"--data.root={colour_folder}", "--name=x", *small, "--data.cache=off"]
    best = "runs/x-1/checkpoints/best.ckpt"
    image = str(next(colour_folder.rglob("*.png")))
    cpu = "--trainer.accelerator=cpu"
    done = lean(
        [*fit, cpu, "--trainer.max_epochs=1"],
        ["test", f"--ckpt_path={best}", f"--data.root={colour_folder}", cpu],
        ["predict", best, image, "--accelerator", "cpu", "--output", "answers.csv"],
        ["report", "runs/x-1"],
        ["predict", best, image, "--output", "answers.parquet"],
        ["export", best, "--output", "x.onnx"],
        [*fit, cpu, "--trainer.logger=WandbLogger"],
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("-> ")]
    assert codes == ["-> 0"] * 3 + ["-> 1"] * 4, done.stdout + done.stderr
    assert f"report    none: {remedy('report')}" in done.stdout
    assert Path("runs/x-1/metrics.json").is_file()
    assert Path("answers.csv").is_file()
    lines = done.stderr.splitlines()
    for extra in ("report", "parquet", "export", "track"):
        (line,) = [each for each in lines if remedy(extra) in each]
        assert line.startswith("finetune: Expected the package")
    assert len(lines) == 4


def test_the_extras_are_those_of_the_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    default = " ".join(project["dependencies"])
    for extra, packages in EXTRAS.items():
        listed = " ".join(extras[extra])
        assert all(f"{name}>=" in listed for name in packages), extra
        for name in packages:  # wandb alone comes with every installation
            assert (f"{name}>=" in default) == (name == "wandb"), name
