import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune import ImageClassifier
from finetune.combining.ingredients import survey
from finetune.errors import CheckpointError
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import (
    ENTRY,
    describe,
    read_checkpoint,
    read_content,
    save_atomically,
    write_checkpoint,
)
from finetune.training.checksums import CHECKSUMS, checksum

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
TENSORS = [
    torch.arange(6.0).view(2, 3),
    torch.arange(6.0).view(2, 3).t(),
    torch.tensor(3),
    torch.tensor([True, False]),
    torch.ones(2, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.complex64),
    torch.zeros(0, 4),
    torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
]


@given(plain)
def test_a_value_that_was_written_and_read_has_its_checksum(value: object) -> None:
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    assert checksum(torch.load(file, weights_only=True)) == checksum(value)


@given(plain, plain)
def test_different_values_have_different_checksums(one: object, other: object) -> None:
    assert (checksum(one) == checksum(other)) == (repr(one) == repr(other))


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda value: f"{value.dtype}{list(value.shape)}")
def test_every_bit_of_a_tensor_counts(tensor: torch.Tensor) -> None:
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
    for position in range(raw.size):
        changed = raw.copy()
        changed[position] ^= 1
        if tensor.dtype == torch.bool:
            continue
        again = torch.from_numpy(changed).view(tensor.dtype).view(tensor.shape)
        assert checksum(again) != before
    assert checksum(tensor.reshape(-1, 1)) != before or tensor.shape == (tensor.numel(), 1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    classifier = ImageClassifier(("a", "b"), "test_resnet", pretrained=False, image_size=32)
    val = {"logits": torch.rand(50, 2), "labels": torch.zeros(50, dtype=torch.long)}
    val |= {"paths": [f"{number}.png" for number in range(50)]}
    write_checkpoint(
        tmp_path / "x.ckpt",
        state_dict=classifier.state_dict(),
        hyper_parameters=dict(classifier.hparams),
        entry={**classifier.entry(), "val": val},
    )
    return tmp_path / "x.ckpt"


def positions(path: Path, tensor: torch.Tensor) -> range:
    """Where a tensor's bytes stand in the file."""
    start = path.read_bytes().index(tensor.numpy().tobytes())
    return range(start, start + tensor.nbytes)


def test_no_changed_bit_of_a_tensor_goes_unnoticed(saved: Path) -> None:
    content = read_content(saved)
    whole = bytearray(saved.read_bytes())
    weights = [value for value in content["state_dict"].values() if value.nbytes > 64]
    draw = random.Random(0)
    for tensor in [*draw.sample(weights, 12), content[ENTRY]["val"]["logits"]]:
        position = draw.choice(positions(saved, tensor))
        changed = bytearray(whole)
        changed[position] ^= 1 << draw.randrange(8)
        saved.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"as it was written, found .* changed"):
            read_checkpoint(saved)
        with pytest.raises(CheckpointError):
            ImageClassifier.from_checkpoint(saved)


def test_mapped_weights_are_checked_when_they_are_read(saved: Path) -> None:
    whole = saved.read_bytes()
    content = read_content(saved)
    for tensor, noticed in (
        (content["state_dict"]["network.fc.weight"], False),
        (content[ENTRY]["val"]["logits"], True),
    ):
        changed = bytearray(whole)
        changed[positions(saved, tensor)[3]] ^= 16
        saved.write_bytes(changed)
        if noticed:
            with pytest.raises(CheckpointError, match="changed"):
                read_content(saved, mmap=True)
        else:
            read_content(saved, mmap=True)  # says what it is, reads no weights
        with pytest.raises(CheckpointError, match="changed"):
            survey([saved])


def test_files_of_earlier_versions_have_no_checksum_and_load(saved: Path) -> None:
    content = read_content(saved)
    del content[ENTRY][CHECKSUMS]
    torch.save(content, saved)
    assert CHECKSUMS not in read_checkpoint(saved).details
    assert read_checkpoint(saved).class_names == ("a", "b")


@pytest.mark.parametrize("sums", [{}, "none", ["x"], {"state_dict": 3}])
def test_checksums_that_are_none_are_a_damaged_file(saved: Path, sums: object) -> None:
    content = read_content(saved)
    content[ENTRY][CHECKSUMS] = sums
    torch.save(content, saved)
    with pytest.raises(CheckpointError):
        read_checkpoint(saved)


def test_a_file_that_was_read_and_written_again_has_sums_of_its_own(saved: Path) -> None:
    content = read_content(saved)
    content["state_dict"]["network.fc.bias"] += 1
    save_atomically(content, saved)
    assert CHECKSUMS in read_content(saved)[ENTRY]


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    entry = describe(("a", "b"), "test_resnet", Preprocessing(), network=NetworkSpec("test_resnet"))
    for name in ("one.ckpt", "other.ckpt"):
        write_checkpoint(
            tmp_path / name,
            state_dict={"w": torch.from_numpy(np.arange(9.0))},
            hyper_parameters={"lr": 0.1},
            entry=entry,
        )
    assert (tmp_path / "one.ckpt").read_bytes() == (tmp_path / "other.ckpt").read_bytes()
