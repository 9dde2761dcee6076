import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from finetune import Ensemble, ImageClassifier, Preprocessing, export
from finetune.combining.calibrated_answer import Calibration
from finetune.combining.members import ClassifierMember, TableMember
from finetune.errors import ExportError
from finetune.exporting.safetensors_folder import read_safetensors
from finetune.spec.images import ImageRef
from finetune.spec.splits import SplitRecord, Standing

MakeClassifier = Callable[..., ImageClassifier]


def views_of(ensemble: Ensemble, count: int) -> dict[Preprocessing, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {
        each: torch.rand(
            count, each.in_chans, each.image_size, each.image_size, generator=generator
        )
        for each in ensemble.preprocessings
    }


def members(*classifiers: ImageClassifier) -> list[ClassifierMember]:
    return [ClassifierMember(each, f"/home/me/{i}.ckpt") for i, each in enumerate(classifiers)]


@pytest.fixture(scope="module")
def two_sizes(make_classifier: MakeClassifier, calibration: Calibration) -> Ensemble:
    """Two backbones, two sizes, two orders of the classes, unequal shares, calibrated."""
    first = make_classifier("baseline_mlp", 32)
    second = make_classifier("test_resnet", 48, seed=1, class_names=("red", "blue", "green"))
    image = ImageRef("0" * 32, "secret.jpg", 0)
    split = SplitRecord({}, first.class_names, (image,), (Standing("train"),))
    first.details |= {"data": {"root": "/home/me/secret"}, "split": split.plain}
    first.details["out_of_fold"] = {"ids": ["secret"], "logits": [[0.0, 0.0, 0.0]]}
    return Ensemble(
        members(first, second),
        coefficients=[0.3, 0.7],
        calibration=calibration,
        roles={"calibrate": ("secret",)},
    )


@pytest.fixture(scope="module")
def graphs(two_sizes: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``m.onnx`` and ``m.pt2`` of the two sizes."""
    folder = tmp_path_factory.mktemp("graphs")
    exported = export(two_sizes, folder / "m.onnx")
    assert exported.inputs == dict(
        zip(("images_0", "images_1"), two_sizes.preprocessings, strict=True)
    )
    assert export(two_sizes, folder / "m.pt2", format="torch").inputs == exported.inputs
    return folder


@pytest.mark.slow
def test_two_backbones_of_two_sizes_are_one_graph(two_sizes: Ensemble, graphs: Path) -> None:
    session = onnxruntime.InferenceSession(graphs / "m.onnx")
    assert {each.name: each.shape for each in session.get_inputs()} == {
        "images_0": ["batch", 3, 32, 32],
        "images_1": ["batch", 3, 48, 48],
    }
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("probabilities", ["batch", 3])
    ]
    program = torch.export.load(graphs / "m.pt2").module()
    for count in (1, 4):
        views = views_of(two_sizes, count)
        expected = two_sizes.answer(two_sizes.member_logits(views)).probabilities
        images = [view.numpy() for view in views.values()]
        named = dict(zip(("images_0", "images_1"), images, strict=True))
        assert_close(torch.from_numpy(session.run(None, named)[0]), expected, atol=1e-5, rtol=0)
        assert_close(program(*views.values()), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_what_is_written_tells_nothing_of_this_machine(graphs: Path) -> None:
    source = str(Path(__file__).parents[2]).encode()
    for name in ("m.onnx", "m.pt2"):
        content = (graphs / name).read_bytes()
        assert b"class_names" in content  # it is not compressed
        assert not any(word in content for word in (b"secret", b"/home/me", source))


@pytest.mark.slow
def test_heads_run_their_common_backbone_once(
    make_classifier: MakeClassifier, tmp_path: Path
) -> None:
    first = make_classifier()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.network.get_classifier().weight.mul_(-0.5)
    ensemble = Ensemble(members(first, second))
    export(ensemble, tmp_path / "m.onnx")
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    convolutions = sum(isinstance(module, nn.Conv2d) for module in first.network.modules())
    assert sum(node.op_type == "Conv" for node in nodes) == convolutions
    export(ensemble, tmp_path / "folder", format="safetensors")
    weights = sum(tensor.nbytes for tensor in first.state_dict().values())
    assert (tmp_path / "folder" / "model.safetensors").stat().st_size < 1.1 * weights
    views = views_of(ensemble, 3)
    again = read_safetensors(tmp_path / "folder")
    assert torch.equal(again.member_probabilities(views), ensemble.member_probabilities(views))


@pytest.mark.parametrize("pooling", ["mean", "geometric", "vote"])
def test_ensembles_of_ensembles_with_any_pooling(
    make_classifier: MakeClassifier, two_sizes: Ensemble, tmp_path: Path, pooling: str
) -> None:
    (third,) = members(make_classifier("baseline_mlp", 32, seed=2))
    ensemble = Ensemble([two_sizes, third], pooling=pooling)
    views = views_of(ensemble, 4)
    expected = ensemble.probabilities(views)
    export(ensemble, tmp_path / "m.pt2", format="torch")
    program = torch.export.load(tmp_path / "m.pt2").module()
    assert_close(program(*views.values()), expected, atol=1e-5, rtol=0)
    export(ensemble, tmp_path / "folder", format="safetensors")
    assert torch.equal(read_safetensors(tmp_path / "folder").probabilities(views), expected)


def test_the_description_is_strict_json_and_holds_every_rule(
    two_sizes: Ensemble, calibration: Calibration, tmp_path: Path
) -> None:
    assert calibration.conformal is not None
    # Too few images: every class is in every set, and JSON knows no infinity.
    endless = replace(calibration, conformal=replace(calibration.conformal, threshold=math.inf))
    ensemble = Ensemble(two_sizes.parts, calibration=endless)
    export(ensemble, tmp_path / "folder", format="safetensors")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "folder" / "config.json").read_text()
    about = json.loads(text, parse_constant=refuse)
    assert "home" not in text
    assert about["class_names"] == ["blue", "green", "red"]
    assert about["calibration"]["fit"]["temperature"] == 1.7
    assert about["calibration"]["reject"]["threshold"] == 0.4
    assert about["calibration"]["conformal"]["threshold"] is None
    first, second = ensemble.preprocessings
    assert about["inputs"][1] == {
        "name": "images_1",
        "channels": 3,
        "resize_short_side": second.resize_size,
        "resize_long_side": second.long_side,
        "interpolation": second.interpolation,
        "centre_crop": 48,
        "range": [0, 1],
    }
    assert about["members"][0]["preprocessing"] == first.to_dict()
    assert read_safetensors(tmp_path / "folder").calibration == endless


def test_saved_predictions_cannot_be_exported(two_sizes: Ensemble, tmp_path: Path) -> None:
    table = TableMember("answers.csv", two_sizes.class_names, ["a.jpg"], torch.full((1, 3), 1 / 3))
    within = Ensemble([Ensemble([*two_sizes.parts, table])])
    with pytest.raises(ExportError, match=r"answers\.csv"):
        export(within, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_an_ensemble_is_no_network_of_timms(two_sizes: Ensemble, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ensemble of 2"):
        export(two_sizes, tmp_path / "folder", format="timm")
    assert not list(tmp_path.iterdir())
