"""What every format must hold for every network: the classifier's own answers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor
from torch.testing import assert_close

from finetune import Ensemble, ImageClassifier, export
from finetune.exporting.safetensors_folder import read_safetensors

MakeClassifier = Callable[..., ImageClassifier]
FORMATS = {"onnx": "m.onnx", "torch": "m.pt2", "safetensors": "folder"}
NETWORKS = [
    pytest.param("baseline_cnn", 32, {}, id="baseline_cnn"),
    pytest.param("test_vit", 160, {}, id="test_vit"),
    pytest.param("resnet18", 64, {}, id="resnet18"),
    # MobileNetV3's squeeze-and-excite and hard swish, in a few layers.
    pytest.param("test_efficientnet", 32, {"act_layer": "hard_swish"}, id="hard_swish"),
    pytest.param("tf_efficientnet_lite0", 64, {}, id="tf_efficientnet_lite0"),
]


def random_images(classifier: ImageClassifier, count: int) -> Tensor:
    """``(B, C, S, S)`` in ``[0, 1]``, dark ones and bright ones."""
    side, chans = classifier.preprocessing.image_size, classifier.preprocessing.in_chans
    generator = torch.Generator().manual_seed(count)
    noise = torch.rand(count, chans, side, side, generator=generator)
    return noise * torch.linspace(1, 0.1, count).view(-1, 1, 1, 1)


@torch.inference_mode()
def answers(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """As ``finetune predict`` has them."""
    single = Ensemble.of(classifier)
    views = {classifier.preprocessing: images}
    return single.answer(single.member_logits(views)).probabilities


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size", "network_options"), NETWORKS)
def test_every_format_answers_as_the_classifier(
    make_classifier: MakeClassifier,
    tmp_path: Path,
    backbone: str,
    size: int,
    network_options: dict[str, object],
) -> None:
    classifier = make_classifier(backbone, size, calibrated=True, network_options=network_options)
    for format, name in FORMATS.items():
        exported = export(classifier, tmp_path / name, format=format)
        assert exported.greatest_difference < 1e-5
        assert exported.inputs == {"images": classifier.preprocessing}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    program = torch.export.load(tmp_path / "m.pt2").module()
    ensemble = read_safetensors(tmp_path / "folder")
    for count in (1, 2, 5):
        images = random_images(classifier, count)
        expected = answers(classifier, images)
        if count == 5:  # otherwise equality would say nothing
            assert float(expected.std(dim=0).max()) > 0.01
        (found,) = session.run(["probabilities"], {"images": images.numpy()})
        assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)
        assert_close(program(images), expected, atol=1e-5, rtol=0)
        views = {classifier.preprocessing: images}
        again = ensemble.answer(ensemble.member_logits(views))
        assert torch.equal(again.probabilities, expected)


@pytest.mark.slow
def test_a_network_that_answers_with_a_pair_is_one_graph(
    make_classifier: MakeClassifier, tmp_path: Path
) -> None:
    """Inception v3 with its auxiliary head, at its full size: ONNX is made of PyTorch's program."""
    classifier = make_classifier(
        "inception_v3", 299, calibrated=True, network_options={"aux_logits": True}
    )
    exported = export(classifier, tmp_path / "m.onnx", format="onnx")
    assert exported.greatest_difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    images = random_images(classifier, 2)
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    assert_close(torch.from_numpy(found), answers(classifier, images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "size", "options"),
    [
        pytest.param("test_vit", 192, {}, id="test_vit"),
        pytest.param("resnet18", 64, {"in_chans": 1}, id="resnet18-grey"),
        pytest.param("mobilenetv3_small_050", 64, {}, id="mobilenetv3_small_050"),
        pytest.param(
            "inception_v3",
            299,
            {"network_options": {"aux_logits": True}},
            id="inception_v3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_timm_alone_opens_its_folder(
    make_classifier: MakeClassifier,
    tmp_path: Path,
    backbone: str,
    size: int,
    options: dict[str, object],
) -> None:
    classifier = make_classifier(backbone, size, calibrated=True, **options)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    export(classifier, tmp_path / "folder", format="timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    preprocessing = classifier.preprocessing
    assert config["input_size"] == (preprocessing.in_chans, size, size)
    assert config["crop_pct"] == preprocessing.crop_fraction
    assert config["interpolation"] == preprocessing.interpolation
    assert network.pretrained_cfg["label_names"] == list(classifier.class_names)
    images = random_images(classifier, 5)
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        logits = network((images - mean) / std)
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert_close(logits.softmax(dim=-1), answers(classifier, images), atol=1e-5, rtol=0)
    for name, value in classifier.state_dict().items():  # the temperature went into a copy
        assert torch.equal(value, before[name])


def test_timm_loads_the_tensors_of_a_classifier_by_their_names(
    make_classifier: MakeClassifier, tmp_path: Path
) -> None:
    import safetensors.torch

    classifier = make_classifier()
    export(classifier, tmp_path / "folder", format="safetensors")
    (member,) = json.loads((tmp_path / "folder" / "config.json").read_text())["members"]
    network = timm.create_model(member["backbone"], num_classes=len(member["class_names"])).eval()
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors"))
    images = random_images(classifier, 3)
    mean, std = (
        np.reshape(member["preprocessing"][name], (1, -1, 1, 1)) for name in ("mean", "std")
    )
    with torch.inference_mode():
        logits = network((images - torch.from_numpy(mean)).div(torch.from_numpy(std)).float())
    assert_close(logits.softmax(dim=-1), answers(classifier, images), atol=1e-5, rtol=0)
