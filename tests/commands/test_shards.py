"""A fit on shards, and every verb after it, is the fit on a folder of the same images."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.training.checkpoints import read_checkpoint

SMALL = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.strategy=head"]
SMALL += ["--trainer.accelerator=cpu", "--data.cache=off"]


@pytest.fixture
def both(colour_folder: Path) -> tuple[str, str]:
    """``folder/train/red/00.png`` and ``one.tar`` with the same images in the same order."""
    with tarfile.open("one.tar", "w") as shard:
        for split, numbers in {"train": range(7), "val": range(7, 10), "test": (10, 11)}.items():
            for image in sorted(colour_folder.rglob("*.png")):
                if int(image.stem) not in numbers:
                    continue
                copy = Path("folder", split, image.parent.name, image.name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(image.read_bytes())
                name = f"{image.parent.name}-{image.stem}"
                said = json.dumps({"label": image.parent.name, "split": split}).encode()
                for member, content in (
                    (f"{name}.png", image.read_bytes()),
                    (f"{name}.json", said),
                ):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    return "folder", "one.tar"


def figures(run: str, stage: str) -> dict[str, float]:
    found = json.loads(Path(run, "metrics.json").read_text())[stage]
    return {name: value for name, value in found.items() if name not in ("images", "ms_per_image")}


def test_a_fit_on_a_shard_is_that_on_the_folder(both: tuple[str, str], capsys) -> None:
    checkpoints = []
    for name, root in zip(("of_folder", "of_shard"), both, strict=True):
        assert main(["fit", f"--data.root={root}", f"--name={name}", *SMALL]) == 0
        run = f"runs/{name}-1"
        checkpoint = f"{run}/checkpoints/best.ckpt"
        checkpoints.append(read_checkpoint(checkpoint))
        assert main(["test", f"--ckpt_path={checkpoint}", f"--data.root={root}"]) == 0
        assert main(["predict", checkpoint, root, f"--output={name}.csv"]) == 0
    one, other = checkpoints
    for key, value in one.state_dict.items():
        assert torch.equal(value, other.state_dict[key]), key
    assert figures("runs/of_folder-1", "test") == figures("runs/of_shard-1", "test")
    answers = [Path(f"{n}.csv").read_text().splitlines() for n in ("of_folder", "of_shard")]
    assert len(answers[0]) == len(answers[1]) == 37
    shown = Path("runs/of_shard-1/split.csv").read_text()
    assert "one.tar::blue-00.png" in shown
    runs = ["runs/of_folder-1", "runs/of_shard-1"]
    assert main(["ensemble", *runs, "--data.root=one.tar", "--output=e.ckpt"]) == 0
    assert main(["report", "runs/of_shard-1", "--output=page.html"]) == 0
    assert capsys.readouterr().err == ""


def test_a_damaged_shard_ends_a_fit_in_one_line(both: tuple[str, str], capsys) -> None:
    content = Path("one.tar").read_bytes()
    Path("one.tar").write_bytes(content[: len(content) // 2])
    assert main(["fit", "--data.root=one.tar", *SMALL]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "one.tar (is damaged after" in line
    assert not Path("runs").exists()
