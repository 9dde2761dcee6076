"""A transformer for far larger images than usual: the usual size, positions interpolated."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models import _registry

from finetune.cli import main
from finetune.networks.factory import create_network, network_spec
from finetune.networks.input_size import smaller_size
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier

OWN = 518
FAR = "vit_far_patch14"  # a tiny one, of the kind of DINOv2


def vit_far_patch14(pretrained: bool = False, **options: object) -> torch.nn.Module:
    """Two blocks of width 16."""
    sizes = {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 1}
    return timm.models.vision_transformer._create_vision_transformer(
        FAR, pretrained=pretrained, **{**sizes, **options}
    )


def far_configuration() -> dict[str, object]:
    return {
        "input_size": (3, OWN, OWN),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "num_classes": 7,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = timm.models.generate_default_cfgs({f"{FAR}.made": far_configuration()})


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Timm knows it while these tests run; others list what timm has."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kept in vars(_registry).items():
            if isinstance(kept, dict | set) and not name.startswith("__"):
                patch.setattr(_registry, name, deepcopy(kept))
        timm.models.register_model(vit_far_patch14)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "far.safetensors"
    network = create_network(FAR, 7)
    torch.nn.init.normal_(network.pos_embed)
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def test_the_usual_size_in_whole_patches() -> None:
    found = smaller_size(FAR)
    assert found is not None
    assert (found.pixels, found.own) == (224, OWN)
    assert found.factor == pytest.approx((37 / 16) ** 2)
    assert smaller_size("vit_small_patch14_dinov2").pixels == 224
    assert smaller_size("samvit_base_patch16") is None  # holds to its size by windows


@pytest.mark.parametrize(
    "name",
    [
        "eva_giant_patch14_560",  # says so
        "vit_small_patch16_224",
        "tf_efficientnet_b7",  # 600 pixels belong to its width
        "baseline_cnn",
    ],
)
def test_others_keep_their_size(name: str) -> None:
    assert smaller_size(name) is None


def test_positions_are_interpolated_and_not_drawn(weights: Path) -> None:
    own = create_network(FAR, 7, pretrained=str(weights))
    small = create_network(FAR, 7, pretrained=str(weights), image_size=224)
    assert own.pos_embed.shape[1] - 1 == 37**2
    assert small.pos_embed.shape[1] - 1 == 16**2
    before = own.pos_embed[0, 1:].unflatten(0, (37, 37)).movedim(2, 0)[None]
    after = small.pos_embed[0, 1:].unflatten(0, (16, 16)).movedim(2, 0)[None]
    expected = torch.nn.functional.interpolate(
        before, size=(16, 16), mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(after, expected)


def test_a_fit_takes_the_usual_size_says_why_and_its_checkpoint_keeps_it(
    weights: Path, colour_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    fit = ["fit", f"--data.root={colour_folder}", "--trainer.accelerator=cpu"]
    fit += [f"--model.backbone={FAR}", f"--model.pretrained={weights}", "--model.strategy=head"]
    assert main(fit) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if each[:10] == "image_size")
    assert "224" in line
    assert "positions interpolated; its own 518 pixels take 5.3 times" in line
    checkpoint = read_checkpoint(Path(f"runs/{FAR}-1/checkpoints/best.ckpt"))
    assert checkpoint.preprocessing.image_size == 224
    assert checkpoint.network.arguments["img_size"] == 224
    classifier = ImageClassifier.from_checkpoint(checkpoint.path)
    assert classifier(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 3)
    assert main([*fit, "--model.image_size=70"]) == 0
    given = read_checkpoint(Path(f"runs/{FAR}-2/checkpoints/best.ckpt"))
    assert given.preprocessing.image_size == given.network.arguments["img_size"] == 70
    assert "as given" in capsys.readouterr().out
    spec = network_spec(FAR)
    assert spec.arguments["img_size"] == OWN  # asked for by name alone, it is as it was made
