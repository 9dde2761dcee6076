import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from finetune.errors import NetworkError, PretrainedWeightsError, UnknownBackboneError
from finetune.networks import pretrained as pretrained_module
from finetune.networks.factory import (
    create_network,
    preprocessing_of,
)
from finetune.networks.offline_weights import (
    PACKAGES,
    offline_backbones,
    renamed_for_timm,
    weights_file,
)
from finetune.networks.pretrained import _read_tensors, find_weights
from finetune.spec.preprocessing import Preprocessing

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    network = timm.create_model(LITE0)
    tensors = renamed_for_timm(LITE0, _read_tensors(weights_file(LITE0)))
    network.load_state_dict(tensors, strict=False)
    return network.eval()


def original(backbone: str) -> nn.Module:
    """The network that the weights were published for, from another package."""
    from efficientnet_lite_pytorch import EfficientNet

    name = backbone.removeprefix("tf_").replace("_", "-")
    return EfficientNet.from_pretrained(name, weights_path=str(weights_file(backbone))).eval()


@pytest.mark.parametrize("backbone", PACKAGES)
def test_mapped_weights_answer_as_the_original_network(backbone: str) -> None:
    assert backbone in offline_backbones()
    tensors = renamed_for_timm(backbone, _read_tensors(weights_file(backbone)))
    network = timm.create_model(backbone).eval()
    missing = network.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert all("num_batches_tracked" in key for key in missing.missing_keys)
    side = preprocessing_of(backbone).image_size
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        assert_close(network(images), original(backbone)(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", PACKAGES)
def test_installed_weights_are_found_without_any_network(backbone: str) -> None:
    weights = find_weights(f"{backbone}.in1k", True)
    assert weights.num_classes == 1000
    assert {"conv_stem.weight", "classifier.bias"} <= weights.overlay["state_dict"].keys()


def test_the_namesake_with_other_padding_would_answer_wrongly() -> None:
    namesake = timm.create_model("efficientnet_lite0").eval()
    tensors = renamed_for_timm(LITE0, _read_tensors(weights_file(LITE0)))
    namesake.load_state_dict(tensors, strict=False)
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        assert (namesake(images) - original(LITE0)(images)).abs().max() > 0.5


@pytest.mark.parametrize(("photograph", "expected"), [("coffee", "espresso"), ("chelsea", "cat")])
def test_photographs_are_recognised(lite0, photograph: str, expected: str) -> None:
    from finetune.data.transforms import evaluation_transform

    folder = Path(str(importlib.import_module("skimage").__file__)).parent / "data"
    with Image.open(folder / f"{photograph}.png") as opened:
        pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
    preprocessing = preprocessing_of(LITE0)
    image = evaluation_transform(preprocessing)(pixels) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    with torch.inference_mode():
        best = int(lite0(((image - mean) / std)[None]).argmax())
    info = timm.data.ImageNetInfo()
    assert expected in info.index_to_description(best).lower()


def test_preprocessing_is_the_backbones_own() -> None:
    assert preprocessing_of(LITE0) == Preprocessing(224, (0.5,) * 3, (0.5,) * 3, 0.875, "bicubic")
    assert preprocessing_of("inception_v3").image_size == 299
    assert preprocessing_of("resnet50", image_size=160).image_size == 160


def test_preprocessing_of_greyscale_averages_the_statistics() -> None:
    grey = preprocessing_of("resnet50", in_chans=1)
    assert grey.in_chans == 1
    assert grey.mean[0] == pytest.approx((0.485 + 0.456 + 0.406) / 3)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "inception_v4",
        "inception_resnet_v2",
        "inception_next_atto",
        "mobilenetv3_small_050",
        "convnext_atto",
        "vit_tiny_patch16_224",
    ],
)
def test_the_final_layer_has_as_many_logits_as_classes(name: str) -> None:
    with torch.device("meta"):
        network = create_network(name, 7)
    classifier = network.get_classifier()
    assert classifier.out_features == 7
    assert classifier.in_features == network.head_hidden_size


def test_pretrained_network_keeps_all_but_the_final_layer(lite0) -> None:
    network = create_network(LITE0, 3, pretrained=True)
    assert network.get_classifier().out_features == 3
    own = network.state_dict()
    for key, value in lite0.state_dict().items():
        if not key.startswith("classifier"):
            assert torch.equal(own[key], value), key
    assert network.pretrained_cfg["state_dict"] is None, "a second copy of all weights is kept"


def test_pretrained_network_for_greyscale_adds_up_the_first_layer() -> None:
    colour = create_network(LITE0, 3, pretrained=True).conv_stem.weight
    grey = create_network(LITE0, 3, pretrained=True, in_chans=1).conv_stem.weight
    assert_close(grey, colour.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes_in_file", [0, 5])
def test_weights_come_from_a_file(tmp_path: Path, ending: str, classes_in_file: int) -> None:
    donor = timm.create_model("test_resnet", num_classes=classes_in_file)
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        safetensors.torch.save_file(donor.state_dict(), path)
    else:
        torch.save(donor.state_dict(), path)
    network = create_network("test_resnet", 2, pretrained=str(path))
    assert network.get_classifier().out_features == 2
    for key, value in donor.state_dict().items():
        if not key.startswith("fc"):
            assert torch.equal(network.state_dict()[key], value)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    with pytest.raises(PretrainedWeightsError, match="Expected weights of test_resnet"):
        create_network("test_resnet", 2, pretrained=str(path))


def test_one_missing_tensor_is_refused(tmp_path: Path) -> None:
    tensors = timm.create_model("test_resnet").state_dict()
    del tensors["layer1.0.conv1.weight"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(PretrainedWeightsError, match=r"layer1\.0\.conv1\.weight"):
        create_network("test_resnet", 2, pretrained=str(tmp_path / "part.pth"))


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.pth"
    path.write_text("<html>404</html>")
    with pytest.raises(PretrainedWeightsError, match="found something else"):
        create_network("test_resnet", 2, pretrained=str(path))
    with pytest.raises(PretrainedWeightsError, match="found no file"):
        create_network("test_resnet", 2, pretrained=str(tmp_path / "absent.pth"))


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Malicious(), protocol=4))
    for name in ("evil.pth", "bare.pth"):
        with pytest.raises(PretrainedWeightsError, match="code beside them, which is") as caught:
            create_network("test_resnet", 2, pretrained=str(tmp_path / name))
        assert str(caught.value).isprintable()  # torch's own message has colours in it
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"in_chans": 0}, "in_chans of at least 1"),
        ({"drop_rate": 1.0}, "drop_rate to be at least 0 and below 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate to be at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        create_network("test_resnet", 2, **options)


def test_without_network_the_error_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments, **options):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.get_session", lambda: type("Session", (), {"head": unreachable})()
    )
    with pytest.raises(PretrainedWeightsError) as caught:
        create_network("resnet50", 2, pretrained=True)
    for way in ("Name or service", "--model.pretrained FILE", "HF_HOME", LITE0):
        assert way in str(caught.value)


def test_cached_weights_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = timm.create_model("test_resnet")
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        pretrained_module, "_cached_file", lambda repository: str(tmp_path / "model.safetensors")
    )
    network = create_network("test_resnet", 2, pretrained=True)
    assert torch.equal(network.state_dict()["conv1.0.weight"], donor.state_dict()["conv1.0.weight"])


def test_a_baseline_has_no_pretrained_weights() -> None:
    with pytest.raises(PretrainedWeightsError, match=r"--model\.pretrained false"):
        create_network("baseline_cnn", 2, pretrained=True)


def test_a_mistyped_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UnknownBackboneError, match="resnet50"):
        create_network("resnt50", 2)


def test_an_option_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(NetworkError, match="drop_path_rate"):
        create_network("inception_v3", 2, drop_path_rate=0.1)


def test_auxiliary_logits_are_off_unless_asked_for() -> None:
    images = torch.rand(2, 3, 299, 299)
    assert create_network("inception_v3", 2).eval()(images).shape == (2, 2)
    logits, auxiliary = create_network("inception_v3", 2, aux_logits=True).eval()(images)
    assert logits.shape == auxiliary.shape == (2, 2)
