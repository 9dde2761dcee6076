"""The licence of the weights that a fit began with goes along into all that is made of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from finetune import Ensemble, ImageClassifier, average_checkpoints, read_checkpoint
from finetune.commands.apply_recipe import licence_of_weights
from finetune.exporting.description import describe_export
from finetune.networks import pretrained
from finetune.reporting.sources import _columns
from finetune.training.checkpoints import plain, write_checkpoint

CLASSES = ["a", "b"]


@pytest.fixture
def licensed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose fit began with weights of a non-commercial licence."""
    monkeypatch.setattr(pretrained, "licence_of", lambda name: "cc-by-nc-4.0")
    classifier = ImageClassifier(CLASSES, "test_resnet", pretrained=False, image_size=32)
    assert "licence" not in classifier.details
    assert pretrained.weights_licence("test_resnet", True) == "cc-by-nc-4.0"
    classifier.details["licence"] = "cc-by-nc-4.0"
    return written(classifier, tmp_path / "first.ckpt")


def written(classifier: ImageClassifier, path: Path) -> Path:
    settings = plain(dict(classifier.hparams))
    tensors = classifier.state_dict()
    write_checkpoint(path, state_dict=tensors, hyper_parameters=settings, entry=classifier.entry())
    return path


def test_a_licence_goes_along(licensed: Path, tmp_path: Path) -> None:
    assert ImageClassifier.from_checkpoint(licensed).details["licence"] == "cc-by-nc-4.0"
    further = ImageClassifier(CLASSES, "test_resnet", pretrained=str(licensed), image_size=32)
    other = ImageClassifier(CLASSES, "test_resnet", pretrained=False, image_size=32)
    other.details["licence"] = "mit"
    second = written(other, tmp_path / "second.ckpt")
    assert further.details["licence"] == "cc-by-nc-4.0"
    average = average_checkpoints([licensed, second])
    assert average.entry["licence"] == "cc-by-nc-4.0, mit"
    Ensemble.from_checkpoints([licensed, second]).save(tmp_path / "e.ckpt")
    members = torch.load(tmp_path / "e.ckpt", weights_only=True)["finetune"]["members"]
    assert [member["licence"] for member in members] == ["cc-by-nc-4.0", "mit"]
    Ensemble.from_file(tmp_path / "e.ckpt").save(tmp_path / "again.ckpt")
    members = torch.load(tmp_path / "again.ckpt", weights_only=True)["finetune"]["members"]
    assert [member["licence"] for member in members] == ["cc-by-nc-4.0", "mit"]


def test_an_export_and_a_report_say_it(licensed: Path, tmp_path: Path) -> None:
    ensemble = Ensemble.from_checkpoints([licensed])
    assert describe_export(ensemble)["members"][0]["licence"] == "cc-by-nc-4.0"
    columns = _columns(read_checkpoint(licensed))
    assert columns["licence of the weights"] == "cc-by-nc-4.0"


def test_a_licence_that_forbids_business_is_said_in_one_line() -> None:
    def said(licence: str) -> list[str]:
        model = SimpleNamespace(details={"licence": licence}, backbone="convnextv2_tiny")
        return licence_of_weights(SimpleNamespace(model=model))

    (line,) = said("cc-by-nc-4.0")
    assert "convnextv2_tiny" in line
    assert "non-commercial" in line
    assert len(said("apple-amlr, mit")) == 1
    assert said("apache-2.0") == said("") == said("mit, apache-2.0") == []
