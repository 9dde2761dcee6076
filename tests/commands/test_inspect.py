"""The printed table is right, and wrong calls are answered in one line."""

from pathlib import Path

import pytest
from PIL import Image

from finetune.cli import main
from finetune.errors import UsageError
from finetune.training.checkpoints import describe, write_checkpoint
from finetune.training.classifier import ImageClassifier


def test_the_table_of_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "baseline_cnn", "--image-size", "64", "--samples", "400"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    # 3x3x3 weights for each of 32 filters, at each of 64x64 places.
    assert rows["stem.0"][-2:] == ["864", f"{864 * 64 * 64:,}"]
    assert rows["stages.1.1.0"][3:6] == ["64x32x32", "8x8", "2"]
    assert rows["fc"][-2:] == ["2,570", "2,560"]
    assert lines[-2].startswith("total: 391,466 parameters")
    assert "on 400 images of 10 classes" in lines[-1]
    assert "Recommended" in lines[-1]


def test_a_deep_network_is_thinned_unless_all_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", "tf_efficientnet_lite0"]) == 0
    short = capsys.readouterr().out
    assert main(["inspect", "tf_efficientnet_lite0", "--all"]) == 0
    full = capsys.readouterr().out
    assert "left out" in short
    assert len(full.splitlines()) > 50 > 2 * len(short.splitlines())
    assert short.splitlines()[-1] == full.splitlines()[-1]


def test_a_checkpoint_brings_its_own_sizes_and_filters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import lightning

    classifier = ImageClassifier(["a", "b", "c"], backbone="baseline_cnn", pretrained=False)
    trainer = lightning.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", barebones=False
    )
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    saved = tmp_path / "filters.png"
    assert main(["inspect", str(tmp_path / "best.ckpt"), "--filters", str(saved)]) == 0
    assert "64x64 pixels, 3 channels, 3 classes" in capsys.readouterr().out
    with Image.open(saved) as image:
        assert image.width > 200
    assert main(["inspect", str(tmp_path / "best.ckpt"), "--classes", "7"]) == 2


def test_a_checkpoint_of_numbers_has_no_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_ages = ImageClassifier(["age"], backbone="baseline_cnn", pretrained=False, task="regression")
    path = tmp_path / "ages.ckpt"
    described = describe(
        of_ages.class_names,
        of_ages.backbone,
        of_ages.preprocessing,
        network=of_ages.spec,
        task=of_ages.task,
    )
    weights = of_ages.state_dict()
    write_checkpoint(path, state_dict=weights, hyper_parameters=of_ages.hparams, entry=described)
    assert main(["inspect", str(path)]) == 0
    assert "64x64 pixels, 3 channels, a number (age)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["resnett50"], 1, "resnet50"),
        (["baseline_cnn", "--image-size", "0"], 2, "at least 1"),
        (["baseline_cnn", "--sampels", "4"], 2, "--samples"),
        (["nothing.ckpt"], 1, "no file"),
        (["baseline_mlp", "--filters", "x.png"], 1, "convolutions"),
        (["resnet18", "--filters", "x.png"], 1, "is set); leave out --filters, or name tf_"),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments]) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_parser_itself_raises() -> None:
    with pytest.raises(UsageError, match="network"):
        main(["inspect", "--debug"])
