"""An export is served as its checkpoint is, without any network; what it cannot is said."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from starlette.testclient import TestClient
from torch import Tensor

from finetune.cli import main
from finetune.combining.calibrated_answer import Calibration
from finetune.combining.calibration import TemperatureFit
from finetune.combining.conformal import ConformalRule
from finetune.combining.ensemble import Ensemble
from finetune.combining.label_scaling import LabelScaling
from finetune.combining.members import ClassifierMember
from finetune.errors import ExportError
from finetune.exporting.description import as_json, describe_export, ensemble_entry
from finetune.exporting.export import export
from finetune.exporting.onnx_model import OnnxModel
from finetune.prediction import predict
from finetune.prediction.inputs import ImageViews
from finetune.serving.answerers import answerer_of
from finetune.serving.answers import json_answers
from finetune.training.classifier import ImageClassifier

PARITY = 1e-4  # of a probability: what an export may differ by


@pytest.fixture(scope="module")
def deciding(classifier: ImageClassifier, colour_folder: Path) -> ImageClassifier:
    """The same answers under rules that part the images in two."""
    made = copy.deepcopy(classifier)
    found = predict(made, colour_folder)
    plain = found.logits.double().mul(1.7).softmax(-1)  # before the temperature
    made.details["calibration"]["reject"]["threshold"] = float(found.confidences.median())
    made.details["calibration"]["conformal"]["threshold"] = float((1 - plain).median())
    return made


@pytest.fixture(scope="module")
def exported(deciding: ImageClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(deciding, path)
    return path


@pytest.fixture
def without_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network is built")

    monkeypatch.setattr("finetune.training.classifier.build_network", refused)


@pytest.fixture
def clients(
    deciding: ImageClassifier, exported: Path, serve: Callable[..., TestClient]
) -> tuple[TestClient, TestClient]:
    return serve(deciding), serve(OnnxModel.from_file(exported))


@pytest.mark.usefixtures("without_networks")
def test_its_answers_are_those_of_the_checkpoint(
    clients: tuple[TestClient, TestClient], colour_folder: Path
) -> None:
    files = [path.read_bytes() for path in sorted(colour_folder.rglob("*.png"))[::5]]
    sent = [("image", (str(number), content)) for number, content in enumerate(files)]
    ours, theirs = (each.post("/predict", files=sent).json()["answers"] for each in clients)
    assert len(theirs) == len(files)
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() - other.keys() == {"strangeness", "unknown"}
        for key in ("image", "prediction", "rejected", "prediction_set"):
            assert other[key] == own[key]
        assert other["confidence"] == pytest.approx(own["confidence"], abs=PARITY)
        assert other["probabilities"] == pytest.approx(own["probabilities"], abs=PARITY)
    assert len({len(each["prediction_set"]) for each in ours}) > 1
    assert len({each["rejected"] for each in ours}) == 2


def test_what_it_cannot_is_said_and_refused(
    clients: tuple[TestClient, TestClient], colour_folder: Path
) -> None:
    ours, theirs = (each.get("/model").json() for each in clients)
    assert ours["cannot"] == []
    assert "show where it looked" in theirs["cannot"]
    assert (theirs["explains"], theirs["compares"], theirs["unknown"]) == (False, False, False)
    for key in ("class_names", "task", "image_sizes", "limits"):
        assert theirs[key] == ours[key]
    content = (colour_folder / "red" / "03.png").read_bytes()
    for address in ("/explain", "/similar"):
        assert clients[1].post(address, content=content).status_code == 404
    assert clients[1].post("/predict", content=b"<html>").status_code == 422


def identity(path: Path, metadata: str | None) -> None:
    """A graph that is no export, perhaps with a description."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("images", "p")]
    node = helper.make_node("Identity", ["images"], ["p"])
    model = helper.make_model(
        helper.make_graph([node], "g", [ends[0]], [ends[1]]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    if metadata is not None:
        helper.set_model_props(model, {"finetune": metadata})
    onnx.save(model, path)


@pytest.mark.parametrize("metadata", [None, "{", "[]", "[" * 10**5, '{"version": 1}', "described"])
def test_another_file_is_one_line(
    metadata: str | None, classifier: ImageClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    if metadata == "described":
        metadata = as_json(describe_export(Ensemble.of(classifier)))
    identity(Path("m.onnx"), metadata)
    assert main(["serve", "m.onnx"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`finetune export --format onnx` wrote" in error


def test_wrong_calls_are_one_line(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("none.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(ExportError, match="no ONNX model"):
        OnnxModel.from_file("none.onnx")
    with pytest.raises(ExportError, match="found none at"):
        OnnxModel.from_file("absent.onnx")
    for option in (["--data.root", "."], ["--accelerator", "gpu"]):
        assert main(["serve", str(exported), *option]) == 2
        assert f"no {' '.join(option[:1])}" in capsys.readouterr().err


class Described(OnnxModel):
    """What an ensemble's description alone says, with the ensemble's own probabilities."""

    @classmethod
    def by(cls, ensemble: Ensemble) -> OnnxModel:
        def run(views: tuple[Tensor, ...]) -> Tensor:
            return ensemble.probabilities(dict(zip(ensemble.preprocessings, views, strict=True)))

        about = json.loads(as_json(describe_export(ensemble)))
        return cls._described(ensemble_entry(about), run)


def answers(model: Ensemble | OnnxModel, paths: Sequence[Path]) -> list[dict[str, object]]:
    answerer = answerer_of(model)
    images = ImageViews([(path, None) for path in paths], answerer.preprocessings)
    views = [images[index][1] for index in range(len(images))]
    with torch.inference_mode():
        together = [torch.stack(each) for each in zip(*views, strict=True)]  # type: ignore[arg-type]
        return [dict(each) for each in json_answers(answerer.answer(together, paths))]


LABELS = ("blue", "green", "red")


def labelling_classifier(size: int = 32) -> ImageClassifier:
    torch.manual_seed(size)
    return ImageClassifier(
        LABELS, "test_resnet", pretrained=False, image_size=size, task="multilabel"
    ).eval()


def test_labels_are_named_by_the_described_thresholds(colour_folder: Path) -> None:
    calibration = Calibration(
        fit=TemperatureFit(temperature=1.3, nll_before=1.0, nll_after=0.9, images=50),
        thresholds=(0.45, 0.5, 0.55),
        scaling=LabelScaling((0.7, 1.4, 2.0), (0.1, -0.2, 0.05), 0.5),
        conformal=ConformalRule(score="thr", alpha=0.1, threshold=0.52, images=50, of_labels=True),
    )
    member = ClassifierMember(labelling_classifier(), "one")
    ensemble = Ensemble([member], calibration=calibration)
    paths = sorted(colour_folder.rglob("*.png"))[::3]
    ours, theirs = answers(ensemble, paths), answers(Described.by(ensemble), paths)
    assert [each["prediction"] for each in ours] == [each["prediction"] for each in theirs]
    assert [each["prediction_set"] for each in ours] == [each["prediction_set"] for each in theirs]
    assert len({str(each["prediction"]) for each in ours}) > 1


def test_members_of_several_sizes_get_their_views_in_order(colour_folder: Path) -> None:
    members = [ClassifierMember(labelling_classifier(size), str(size)) for size in (48, 32)]
    ensemble = Ensemble(members)
    paths = sorted(colour_folder.rglob("*.png"))[::9]
    for own, other in zip(
        answers(ensemble, paths), answers(Described.by(ensemble), paths), strict=True
    ):
        assert other["probabilities"] == pytest.approx(own["probabilities"], abs=1e-6)
        assert own.keys() - other.keys() == {"disagreement"}
