"""A checkpoint needs nobody: no folder or hub of its backbone, nor what timm says of it today."""

import shutil
from pathlib import Path

import pytest
import timm
import torch

from finetune import Ensemble, ImageClassifier
from finetune.combining.soups import average_checkpoints
from finetune.commands.trainer import FinetuneCLI, quiet_libraries
from finetune.errors import UnknownBackboneError
from finetune.exporting.copying import exportable_copy
from finetune.networks import factory
from finetune.networks.factory import network_spec
from finetune.training.checkpoints import read_checkpoint, write_checkpoint

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
ARCHITECTURES = {
    "test_resnet": {"global_pool": "max", "act_layer": "gelu"},
    "test_vit": {"img_size": 48, "class_token": False, "global_pool": "avg"},
}


@pytest.fixture(params=ARCHITECTURES)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as timm writes it for a hub: pretrained weights, arguments, preprocessing."""
    torch.manual_seed(0)
    options = ARCHITECTURES[request.param]
    network = timm.create_model(request.param, num_classes=7, **options)
    side = options.get("img_size", 48)
    data = {"input_size": (3, side, side), "mean": MEAN, "std": STD, "crop_pct": 0.8}
    timm.models.save_for_hf(
        network,
        str(tmp_path / "published"),
        model_args=options,
        data_config={**data, "interpolation": "bilinear"},
        safe_serialization=True,
    )
    return tmp_path / "published"


def written(classifier: ImageClassifier, path: Path) -> Path:
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=dict(classifier.hparams),
        entry=classifier.entry(),
    )
    return path


@pytest.fixture
def fitted(published: Path, tmp_path: Path) -> tuple[Path, ImageClassifier]:
    """A checkpoint of a classifier of that folder, which is deleted then."""
    classifier = ImageClassifier(("a", "b"), f"local-dir:{published}", pretrained=True).eval()
    path = written(classifier, tmp_path / "best.ckpt")
    shutil.rmtree(published)
    return path, classifier


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, fitted: tuple[Path, ImageClassifier]) -> None:
    """Whoever asks what a name means fails."""

    def asked(name: str, *_: object, **__: object) -> None:
        raise AssertionError(f"somebody asked about {name}")

    for room in (factory, "finetune.training.classifier"):
        for function in ("network_spec", "preprocessing_of"):
            where = room if isinstance(room, str) else room.__name__
            monkeypatch.setattr(f"{where}.{function}", asked)


@pytest.mark.usefixtures("nobody")
def test_it_answers_bit_for_bit_without_the_folder(fitted: tuple[Path, ImageClassifier]) -> None:
    path, classifier = fitted
    again = ImageClassifier.from_checkpoint(path)
    images = torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        expected = classifier(images)
        assert torch.equal(again(images), expected)
        soup = average_checkpoints([path, path]).classifier()
        assert torch.equal(soup(images), expected)
        for ensemble in (Ensemble.from_checkpoints([path, path]), exportable_copy(again)):
            views = {again.preprocessing: images}
            assert torch.equal(ensemble.member_logits(views)[0], expected)
    assert again.preprocessing == soup.preprocessing == classifier.preprocessing
    assert again.preprocessing.mean == pytest.approx(MEAN)
    assert again.preprocessing.crop_fraction == 0.8


def test_commands_open_it_without_the_folder(
    fitted: tuple[Path, ImageClassifier], colour_folder: Path
) -> None:
    path, classifier = fitted
    quiet_libraries()
    cli = FinetuneCLI("test", ["--ckpt_path", str(path), "--data.root", str(colour_folder)])
    assert cli.model.preprocessing == classifier.preprocessing
    assert cli.model.spec == classifier.spec
    checkpoint = read_checkpoint(path)
    cli.model.load_weights(checkpoint.state_dict, source=str(path))
    cli.model.see_as(checkpoint)
    again = written(cli.model, path.with_name("again.ckpt"))  # as a resumed fit does
    cli = FinetuneCLI("test", ["--ckpt_path", str(again), "--data.root", str(colour_folder)])
    assert cli.model.spec == classifier.spec


def test_the_spec_holds_what_the_folder_said(
    published: Path, request: pytest.FixtureRequest
) -> None:
    spec = network_spec(f"local-dir:{published}")
    assert spec.architecture in ARCHITECTURES
    assert spec == network_spec(
        spec.architecture,
        image_size=spec.arguments.get("img_size"),
        **{k: v for k, v in ARCHITECTURES[spec.architecture].items() if k != "img_size"},
    )


def test_without_the_folder_a_new_fit_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnknownBackboneError, match="configuration of a timm network at local-dir"):
        network_spec(f"local-dir:{tmp_path / 'absent'}")
