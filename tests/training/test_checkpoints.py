from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune import Ensemble, ImageClassifier
from finetune.errors import CheckpointError
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import (
    describe,
    plain,
    read_checkpoint,
    save_atomically,
    write_checkpoint,
)

NETWORK = NetworkSpec("test_resnet", {"in_chans": 3, "global_pool": "max"}, "r160_in1k")
PREPROCESSING = Preprocessing(32, (0.5,) * 3, (0.25,) * 3, 0.9, "bilinear")


def write(path: Path, **details) -> None:
    write_checkpoint(
        path,
        state_dict={"network.weight": torch.arange(3.0)},
        hyper_parameters={"lr": np.float64(0.1), "pretrained": Path("weights.pth")},
        entry=describe(("a", "b"), "test_resnet", PREPROCESSING, network=NETWORK, **details),
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "x.ckpt", data={"seed": 3})
    checkpoint = read_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(checkpoint.state_dict["network.weight"], torch.arange(3.0))
    assert checkpoint.class_names == ("a", "b")
    assert checkpoint.backbone == "test_resnet"
    assert checkpoint.network == NETWORK
    assert checkpoint.network.name == "test_resnet.r160_in1k"
    assert checkpoint.preprocessing == PREPROCESSING
    assert checkpoint.details == {"data": {"seed": 3}}
    assert checkpoint.hyper_parameters == {"lr": 0.1, "pretrained": "weights.pth"}


def test_mapped_tensors_are_equal(tmp_path: Path) -> None:
    write(tmp_path / "x.ckpt")
    mapped = read_checkpoint(tmp_path / "x.ckpt", mmap=True).state_dict["network.weight"]
    assert torch.equal(mapped, torch.arange(3.0))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write(path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"broken": lambda: None}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "found a file that is none"),
        (b"", "found a file that is none"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no file"):
        read_checkpoint(tmp_path / "absent.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="other software"):
        read_checkpoint(tmp_path / "other.ckpt")
    save_atomically({"finetune": {"kind": "classifier", "version": 99}}, tmp_path / "new.ckpt")
    with pytest.raises(CheckpointError, match="update finetune"):
        read_checkpoint(tmp_path / "new.ckpt")
    save_atomically({"finetune": {"kind": "classifier", "version": 1}}, tmp_path / "part.ckpt")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "part.ckpt")


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"finetune": Malicious()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.builds(Path, st.just("a/b"))
    | st.builds(np.float32, st.floats(-10, 10, width=32))
    | st.builds(np.int64, st.integers(-5, 5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(nested)
def test_plain_values_load_safely(value) -> None:
    import io

    file = io.BytesIO()
    torch.save(plain(value), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain(value)


def test_values_without_a_plain_form_are_refused() -> None:
    with pytest.raises(TypeError, match="pass plain values"):
        plain({"layer": torch.nn.Linear(1, 1)})


def test_preprocessing_survives_the_round_trip() -> None:
    assert Preprocessing.from_dict(plain(PREPROCESSING.to_dict())) == PREPROCESSING


def test_the_checkpoint_decides_how_images_are_prepared(tmp_path: Path) -> None:
    """timm may change its mind about a backbone's statistics; a fitted network must not."""
    classifier = ImageClassifier(("a", "b"), "test_resnet", pretrained=False, image_size=32).eval()
    then = replace(classifier.preprocessing, mean=(0.1, 0.2, 0.3), crop_fraction=0.5)
    path = tmp_path / "best.ckpt"
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=dict(classifier.hparams),
        entry=describe(classifier.class_names, classifier.backbone, then, network=classifier.spec),
    )
    reloaded = ImageClassifier.from_checkpoint(path)
    assert reloaded.preprocessing == then
    images = torch.rand(2, 3, 32, 32)
    shift = (torch.tensor(then.mean) - torch.tensor(classifier.preprocessing.mean)).view(3, 1, 1)
    torch.testing.assert_close(reloaded(images), classifier(images - shift))
    (member,) = Ensemble.from_checkpoints([path]).parts
    assert member.preprocessings == (then,)
