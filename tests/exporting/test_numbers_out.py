"""What answers with a number answers in the user's unit from every file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from finetune import Ensemble, ImageClassifier, export
from finetune.combining.calibrated_answer import Calibration
from finetune.combining.members import ClassifierMember
from finetune.combining.number_intervals import IntervalRule
from finetune.errors import ExportError
from finetune.exporting.safetensors_folder import read_safetensors
from finetune.exporting.targets import Format


def classifier(shift: float = 0.0) -> ImageClassifier:
    torch.manual_seed(0)
    made = ImageClassifier(
        ["age"], "test_resnet", pretrained=False, image_size=32, task="regression"
    )
    made.unit.learn(torch.linspace(1e5, 3e5, 9).unsqueeze(1) + shift)
    return made.eval()


IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def wanted(*members: ImageClassifier) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([member(IMAGES) for member in members]).mean(dim=0)


def test_a_program_answers_in_the_users_unit(tmp_path: Path) -> None:
    one, other = classifier(), classifier(5e4)  # the same backbone, which runs once
    both = Ensemble(
        [ClassifierMember(one, "a"), ClassifierMember(other, "b")],
        calibration=Calibration(None, interval=IntervalRule(0.1, 2e4, 30)),
    )
    assert float((wanted(other) - wanted(one)).mean()) == pytest.approx(5e4, rel=1e-3)
    written = export(both, tmp_path / "m.pt2", format="torch")
    assert written.output == "numbers"
    assert written.greatest_difference is not None
    assert written.greatest_difference < 1e-6
    program = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(program(IMAGES), wanted(one, other), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_a_folder_answers_in_the_users_unit(tmp_path: Path, form: Format) -> None:
    one = classifier()
    export(one, tmp_path / "folder", format=form)
    if form == "safetensors":
        answer = read_safetensors(tmp_path / "folder").probabilities({one.preprocessing: IMAGES})
    else:
        network = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
        answer = network(one.normalised(IMAGES))
    torch.testing.assert_close(answer.detach(), wanted(one), rtol=1e-5, atol=0)


def test_an_answer_in_another_unit_is_found_out(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def standardised(ensemble: Ensemble, path: Path) -> Callable[..., torch.Tensor]:
        path.write_text("a program")
        network = ensemble.first_classifier
        assert network is not None
        return lambda views: network.network(network.normalised(views[0]))

    monkeypatch.setattr("finetune.exporting.export.write_torch", standardised)
    with pytest.raises(ExportError, match="found answers that differ"):
        export(classifier(), tmp_path / "m.pt2", format="torch")
