import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune import ImageClassifier, export, extras
from finetune.errors import ExportError, MissingPackageError, UsageError
from finetune.exporting import onnx_file
from finetune.exporting.safetensors_folder import read_safetensors

MakeClassifier = Callable[..., ImageClassifier]


def test_the_classifier_stays_as_it_is(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    classifier = make_classifier().train()
    modes = [module.training for module in classifier.modules()]
    export(classifier, tmp_path / "m.pt2", format="torch")
    assert [module.training for module in classifier.modules()] == modes
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())


@pytest.mark.parametrize("shift", [1e-3, float("nan")])
def test_a_file_that_answers_otherwise_is_not_left(
    make_classifier: MakeClassifier, tmp_path: Path, monkeypatch, shift: float
) -> None:
    written = []

    def wrong(ensemble, path):
        path.write_text("a program")
        written.append(path)
        (view,) = ensemble.preprocessings
        return lambda views: ensemble.probabilities({view: views[0]}) + shift

    monkeypatch.setattr("finetune.exporting.export.write_torch", wrong)
    target = tmp_path / "m.pt2"
    target.write_text("the one before")
    with pytest.raises(ExportError, match="differ by"):
        export(make_classifier(), target, format="torch")
    assert len(written) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    assert target.read_text() == "the one before"


def test_temperature_and_normalisation_are_compared(
    make_classifier: MakeClassifier, tmp_path: Path, monkeypatch
) -> None:
    """Parity is with the calibrated answer: a graph without the temperature is refused."""

    def forgetful(ensemble, path):
        path.write_text("a program")
        (view,) = ensemble.preprocessings
        return lambda views: ensemble.member_probabilities({view: views[0]})[0]

    monkeypatch.setattr("finetune.exporting.export.write_torch", forgetful)
    with pytest.raises(ExportError, match="differ by"):
        export(make_classifier(calibrated=True), tmp_path / "m.pt2", format="torch")


def test_a_baseline_is_no_network_of_timms(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="baseline_cnn"):
        export(make_classifier("baseline_cnn"), tmp_path / "folder", format="timm")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_their_remedy(
    make_classifier: MakeClassifier, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnx" else True)
    with pytest.raises(
        MissingPackageError, match=re.escape(f"found no onnx; {extras.remedy('export')}")
    ):
        export(make_classifier(), tmp_path / "m.onnx")


def test_weights_too_large_for_one_file_are_refused_before_the_work(
    make_classifier: MakeClassifier, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    monkeypatch.setattr(onnx_file, "trace", lambda ensemble: pytest.fail("began"))
    with pytest.raises(ExportError, match="2 GiB"):
        export(make_classifier(), tmp_path / "m.onnx")


def test_a_network_that_cannot_be_traced_is_one_line(
    make_classifier: MakeClassifier, tmp_path: Path
) -> None:
    class Surprising(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.sum() > 0:  # depends on values, which no graph can follow
                return images
            return -images

    classifier = make_classifier()
    network = classifier.network
    network.conv1 = torch.nn.Sequential(Surprising(), network.conv1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "finetune.exporting.export.exportable_copy",
            lambda _: _ensemble_of(classifier),
        )
        with pytest.raises(ExportError, match=r"torch\.export can follow") as caught:
            export(classifier, tmp_path / "m.pt2", format="torch")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def _ensemble_of(classifier: ImageClassifier):
    from finetune.combining.ensemble import Ensemble
    from finetune.combining.members import ClassifierMember

    return Ensemble([ClassifierMember(classifier, "x")])


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        ("onnx", "m.pt2", r"ends in \.onnx"),
        ("torch", "m.onnx", r"ends in \.pt2"),
        ("onnx", "none/m.onnx", "create it"),
        ("onnx", "folder.onnx", "found the folder"),
        ("timm", "file", "found the file"),
    ],
)
def test_paths_that_a_format_cannot_have(
    make_classifier: MakeClassifier, tmp_path: Path, format: str, name: str, message: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=message):
        export(make_classifier(), tmp_path / name, format=format)


def test_a_folder_keeps_what_is_not_ours(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    export(make_classifier(seed=1), folder, format="safetensors")
    (folder / "README.md").write_text("mine")
    classifier = make_classifier(seed=2)
    export(classifier, folder, format="safetensors")
    assert (folder / "README.md").read_text() == "mine"
    found = read_safetensors(folder).state_dict()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(found[f"members.0.classifier.{name}"], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_line(
    make_classifier: MakeClassifier, tmp_path: Path, damage: str
) -> None:
    export(make_classifier(), tmp_path / "folder", format="safetensors")
    (tmp_path / "folder" / damage).write_text("{}")
    with pytest.raises(ExportError, match="export the checkpoint again"):
        read_safetensors(tmp_path / "folder")
