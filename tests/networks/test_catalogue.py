"""The committed list of networks is the installed timm's, and is told without importing it."""

import random
import subprocess
import sys

import pytest
import timm
import torch

from finetune.networks import catalogue
from finetune.networks.catalogue import Listed, licence_of, listed, published, snapshot

AGREES = snapshot()[0] == timm.__version__
needs_the_same_timm = pytest.mark.skipif(not AGREES, reason="made from another timm")


@needs_the_same_timm
def test_the_snapshot_is_the_installed_timms() -> None:
    rows = snapshot()[1]
    assert [each.full_name for each in rows] == published()
    for each in rows:
        config = timm.models.get_pretrained_cfg(each.full_name)
        assert (each.pixels, each.licence) == (
            config.input_size[-1],
            licence_of(each.full_name) if each.tag else "",
        )


@needs_the_same_timm
def test_parameters_are_those_of_the_network() -> None:
    small = [each for each in snapshot()[1] if each.parameters < 20e6]
    for each in random.Random(0).sample(small, 6):
        classes = timm.models.get_pretrained_cfg(each.full_name).num_classes
        with torch.device("meta"):
            network = timm.create_model(each.name, num_classes=classes)
        assert each.parameters == sum(value.numel() for value in network.parameters())


def test_names_are_found_by_pattern() -> None:
    assert [each.name for each in listed("resnet1?t")] == ["resnet10t", "resnet14t"]
    assert {"baseline_cnn", "baseline_mlp"} <= {each.name for each in listed("baseline*")}
    assert {each.name for each in listed("resnet50.*")} == {"resnet50"}
    assert len(listed("resnet50", tags=True)) == len(listed("resnet50.*")) > 10
    assert listed("resnet50")[0].full_name == "resnet50.a1_in1k"


def test_the_tag_tells_what_weights_were_trained_on() -> None:
    (each,) = listed("convnext_tiny.in12k_ft_in1k")
    assert each.data == "in12k in1k"
    assert listed("baseline_cnn")[0].data == ""


def test_another_timm_is_asked_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Listed("gone", "", 1, 32, "")
    kept = [each for each in snapshot()[1] if each.name != "resnet18"]
    monkeypatch.setattr(catalogue, "snapshot", lambda: ("0.1", [gone, *kept]))
    found = {each.full_name: each for each in catalogue.catalogue()}
    assert "gone" not in found
    new = found["resnet18.a1_in1k"]
    assert (new.parameters, new.pixels, new.licence) == (None, 224, "apache-2.0")
    assert found["resnet34.a1_in1k"].parameters > 21e6
    names = [each.name for each in listed("resnet*")]
    assert names.index("resnet18") < names.index("resnet34") < names.index("resnet101")


def test_listing_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from finetune.cli import main; code = main(['models', '--sort=parameters']);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'timm', 'numpy')))"
    )
    if AGREES:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
