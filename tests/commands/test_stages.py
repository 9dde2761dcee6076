"""A fit whose final layer reads stages: every verb works with it, and phases go on from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import finetune
from finetune.cli import main
from finetune.combining.ensemble import Ensemble
from finetune.networks.staged import Staged
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.phases import probe
from tests.commands.test_tasks import manifest_of, write_images

SMALL = ("--model.backbone=test_resnet", "--model.image_size=32")
COMMON = (*SMALL, "--trainer.accelerator=cpu", "--data.cache=off", "--data.augmentation=none")
STAGES = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(scope="module", autouse=True)
def _stages_pay() -> Iterator[None]:
    """Whatever the images say."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probe, "answers_better", lambda *rows: True)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of a network that counts as pretrained."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return f"--model.pretrained={file}"


@pytest.fixture(scope="module")
def runs(colour_folder: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a final layer alone, of one that was refitted, and of phases from it."""
    place = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        call = ["fit", f"--data.root={colour_folder}", weights, *COMMON]
        assert main([*call, "--name=head", "--model.strategy=head"]) == 0
        partial = ["--model.strategy=partial:2", "--trainer.max_epochs=2"]
        assert main([*call, "--name=partial", "--model.refit=false", *partial]) == 0
    return place / "runs"


def best(runs: Path, name: str) -> Path:
    return runs / f"{name}-1" / "checkpoints" / "best.ckpt"


def bright(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["head", "partial"])
def test_a_checkpoint_opens_alone_and_in_an_ensemble_bit_for_bit(
    runs: Path, name: str, tmp_path: Path
) -> None:
    classifier = ImageClassifier.from_checkpoint(best(runs, name))
    assert isinstance(classifier.network, Staged)
    assert classifier.spec.arguments["stages"] == STAGES
    assert bool((classifier.network.get_classifier().weight[:, -10:] != 0).any())
    with torch.no_grad():
        expected = classifier(bright(5))
    both = Ensemble.from_checkpoints([best(runs, "head"), best(runs, "partial")])
    both.save(tmp_path / "both.ckpt")
    for ensemble in (both, Ensemble.from_file(tmp_path / "both.ckpt")):
        views = dict.fromkeys(ensemble.preprocessings, bright(5))
        row = 0 if name == "head" else 1
        assert torch.equal(ensemble.member_logits(views)[row], expected)


def test_its_scales_make_the_stages_vary_as_the_heads_features(runs: Path) -> None:
    network = ImageClassifier.from_checkpoint(best(runs, "head")).network
    scales = network.read_scales.split([32, 48, 192, 96])
    assert all(bool((each == each[0]).all()) for each in scales)
    assert len({float(each[0]) for each in scales}) == 4


def test_phases_begin_from_it(runs: Path) -> None:
    """The fine-tuned phase is beside the final layer alone, or between the two."""
    folder = best(runs, "partial").parent
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) >= 2
    for file in files:
        assert read_checkpoint(file).network.arguments["stages"] == STAGES
    last = read_checkpoint(folder / "last.ckpt").state_dict
    first = ImageClassifier.from_checkpoint(best(runs, "head")).state_dict()
    assert torch.equal(
        last["network.layer1.0.conv1.weight"], first["network.layer1.0.conv1.weight"]
    )
    assert not torch.equal(
        last["network.layer4.0.conv1.weight"], first["network.layer4.0.conv1.weight"]
    )


@pytest.mark.parametrize("name", ["head", "partial"])
def test_every_verb_works_with_it(
    runs: Path, name: str, colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, image = str(best(runs, name)), str(next(colour_folder.rglob("*.png")))
    data = [f"--data.root={colour_folder}", "--data.cache=off"]
    assert main(["test", f"--ckpt_path={file}", *data]) == 0
    assert main(["explain", file, image, "--output", str(tmp_path / "why.png")]) == 0
    assert main(["inspect", file]) == 0
    assert main(["embed", file, str(colour_folder), "--output", str(tmp_path / "e.npz")]) == 0
    assert main(["export", file, "--format=onnx", f"--output={tmp_path / 'm.onnx'}"]) == 0
    assert main(["export", file, "--format=torch", f"--output={tmp_path / 'm.pt2'}"]) == 0
    assert main(["export", file, "--format=safetensors", f"--output={tmp_path / 'm'}"]) == 0
    capsys.readouterr()
    assert main(["export", file, "--format=timm", f"--output={tmp_path / 't'}"]) == 1
    assert "stages" in capsys.readouterr().err
    average = [file, file, f"--output={tmp_path / 'average.ckpt'}"]
    assert main(["average", *average]) == 0


def test_a_fit_resumed_or_begun_with_its_weights_goes_on(
    runs: Path, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = best(runs, "partial").with_name("last.ckpt")
    call = ["fit", f"--data.root={colour_folder}", "--data.cache=off"]
    more = [f"--ckpt_path={last}", "--trainer.max_epochs=4", "--trainer.accelerator=cpu"]
    assert main([*call, *more, "--name=more"]) == 0
    assert "reads" not in capsys.readouterr().out  # it does so already
    weights = f"--model.pretrained={best(runs, 'partial')}"
    begin = [*COMMON, weights, "--model.strategy=head"]
    assert main([*call, *begin, "--model.stages=none", "--name=plain"]) == 0
    fitted = finetune.load("runs/plain-1").model
    found = next(each for each in fitted.modules() if isinstance(each, ImageClassifier))
    assert not isinstance(found.network, Staged)
    assert main([*call, *begin, "--name=again"]) == 0
    assert "the final layer reads layer1, layer2, layer3, layer4" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_read_them_too(
    task: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    data = [f"--data.root={tmp_path / 'images'}", *manifest_of(tmp_path, task)]
    # No val images: their veto is not what is tested here.
    fit = ["fit", *data, weights, *COMMON, "--model.strategy=head", "--data.val_fraction=0"]
    assert main([*fit, "--data.test_fraction=0.2"]) == 0
    loss = "squared error" if task == "regression" else "NLL"
    told = "the final layer reads layer1, layer2, layer3, layer4 as well: cross-validated " + loss
    assert told in capsys.readouterr().out
    file = Path("runs/test_resnet-1/checkpoints/best.ckpt")
    network = ImageClassifier.from_checkpoint(file).network
    assert isinstance(network, Staged)
    assert bool((network.get_classifier().weight[:, -10:] != 0).any())
    assert main(["test", f"--ckpt_path={file}", data[0], "--data.cache=off"]) == 0


def test_nothing_of_random_stages_is_read(
    colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["fit", f"--data.root={colour_folder}", *COMMON, "--model.strategy=head"]
    assert main([*call, "--model.pretrained=false"]) == 0
    assert "reads" not in capsys.readouterr().out
    assert main([*call, "--model.stages=all"]) == 2
