"""``finetune choose``: limits, what it looks at, and what it leaves to the fit that follows."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import finetune
from finetune import cli
from finetune.combining.backbone_choice import BackboneChoice
from finetune.commands import backbone_trials
from finetune.commands.choose import named_backbones
from finetune.data.dataset import ImageDataset
from finetune.errors import UsageError
from finetune.networks.catalogue import COMMERCIAL, catalogue
from finetune.networks.defaults import CANDIDATES, backbones_to_choose_from
from finetune.networks.factory import create_network
from finetune.networks.offline_weights import offline_backbones
from finetune.training.classifier import ImageClassifier
from finetune.training.features import extract
from finetune.training.features.speed import milliseconds_an_image
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.phases.probe import linear_head
from tests.conftest import write_colour_folder

NAMES = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        save_file(create_network(name, 5).state_dict(), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in NAMES}


@pytest.fixture
def given(weights: dict[str, Path]) -> list[str]:
    return [f"{name}={file}" for name, file in weights.items()]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images whose features are computed, one after the other, random views apart."""
    paths: list[Path] = []
    forward = extract._forward

    def spied(
        classifier: object, dataset: ImageDataset, draws: list[int], *rest: object
    ) -> Iterator[np.ndarray]:
        paths.extend(dataset.paths[draw] for draw in draws if isinstance(draw, int))
        return forward(classifier, dataset, draws, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(extract, "_forward", spied)
    return paths


def test_only_training_images_are_looked_at_and_a_fit_starts_from_them(
    given: list[str],
    weights: dict[str, Path],
    computed: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, cache = write_colour_folder(tmp_path / "images"), str(tmp_path / "cache")
    page = tmp_path / "page.html"
    call = ["choose", str(root), "--backbones", ",".join(given[:2]), "--cache-dir", cache]
    assert cli.main([*call, "--output", str(page)]) == 0
    out = capsys.readouterr().out
    train = set(finetune.ImageFolderDataModule(root).images("train"))
    assert set(computed) == {image.path for image in train}
    assert len(computed) == 2 * len(train)
    command = out.splitlines()[-2].removeprefix("next: finetune ")
    assert out.splitlines()[-1] == f"page in {page}"
    computed.clear()
    more = ["--data.cache_dir", cache, "--model.strategy", "head"]
    assert cli.main([*shlex.split(command), *more, "--model.views", "1"]) == 0
    val = finetune.ImageFolderDataModule(root).images("val")
    assert sorted(computed) == sorted(image.path for image in val)
    text = page.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('<th scope="row"') == 2
    assert cli.main([*call, "--output", str(page)]) == 2  # it is there


@pytest.mark.parametrize("pays", [True, False])
def test_a_backbone_is_judged_by_the_final_layer_that_a_fit_would_take(
    pays: bool, colour_folder: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stages surely help, its answers are those of the layer that reads them."""
    fitted: list[tuple[int, torch.Tensor | None]] = []

    def spied(features: torch.Tensor, *rest: object, **options: object) -> Probe:
        probe = fit_probe(features, *rest, **options)  # type: ignore[arg-type]
        fitted.append((features.shape[1], probe.held_out_logits))
        return probe

    monkeypatch.setattr(backbone_trials, "fit_probe", spied)
    monkeypatch.setattr(backbone_trials, "answers_better", lambda *each: pays)
    found = finetune.choose(colour_folder, backbones=given[:1], quiet=True)
    (plain, without), (wide, reading) = fitted
    assert wide > plain
    expected = reading if pays else without
    assert expected is not None
    assert torch.equal(found.named.logits, expected)


def test_limits_leave_out_and_say_why(
    colour_folder: Path, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["choose", str(colour_folder), "--cache-dir", str(tmp_path / "cache")]
    call += ["--backbones", given[0], "--backbones", given[1]]
    assert cli.main([*call, "--mb", "1.4"]) == 0
    out = capsys.readouterr().out
    assert "test_resnet=test_resnet.safetensors is left out: 1.5 MB" in out
    assert "next: finetune fit" in out
    assert "--model.backbone test_efficientnet --model.pretrained" in out
    assert cli.main([*call, "--ms", "0.0001"]) == 2
    assert "ms an image" in capsys.readouterr().err
    assert cli.main([*call, "--licence", "commercial"]) == 2
    assert "licence not known" in capsys.readouterr().err


def test_a_short_budget_judges_one_at_least(colour_folder: Path, given: list[str]) -> None:
    found = finetune.choose(colour_folder, backbones=given, budget="0.001s", quiet=True)
    assert isinstance(found, BackboneChoice)
    assert [each.backbone for each in found.trials] == [NAMES[0]]
    assert found.named.images == len(found.named.labels) > 10


@pytest.mark.parametrize(
    ("backbones", "offline", "words"),
    [
        (["baseline_cnn"], False, "learns its own"),
        (["resnet50"], True, "--offline"),
        (["test_vit=a.safetensors,test_vit=b/a.safetensors"], False, "each once"),
        ([","], False, "none"),
        (["resnett50"], False, "resnet50"),
    ],
)
def test_what_cannot_be_judged_is_refused(backbones: list[str], offline: bool, words: str) -> None:
    with pytest.raises(finetune.FinetuneError, match=words):
        named_backbones(backbones, offline=offline)


def test_several_labels_an_image_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        Image.new("RGB", (20, 20), (60 * index, 9, 9)).save(tmp_path / f"{index}.png")
    manifest = tmp_path / "labels.csv"
    manifest.write_text("path,label\n0.png,a|b\n1.png,a\n2.png,b\n3.png,a|b\n")
    with pytest.raises(UsageError, match="compare the runs"):
        finetune.choose(tmp_path, manifest=manifest, backbones="test_vit", quiet=True)


def test_the_short_list_can_be_named_judged_and_used_for_anything() -> None:
    known = {each.full_name: each for each in catalogue()}
    assert {known[name].licence for name in CANDIDATES} <= COMMERCIAL
    for name in CANDIDATES:
        with torch.device("meta"):
            assert linear_head(create_network(name, 3)) is not None
    assert backbones_to_choose_from(offline=True) == offline_backbones()  # nothing is cached here
    assert backbones_to_choose_from(offline=False) == offline_backbones()  # nor is there a hub


def test_timing_leaves_the_network_as_it_was() -> None:
    classifier = ImageClassifier(["a", "b"], backbone="test_resnet", pretrained=False).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert milliseconds_an_image(classifier) > 0
    assert classifier.training
    assert all(value.is_contiguous() for value in classifier.network.state_dict().values())
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
