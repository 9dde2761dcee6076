"""What Lightning's trainers write is whole at every moment, whatever TMPDIR is."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from finetune.errors import CheckpointError, OutputError
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoint_io import AtomicCheckpointIO, use_atomic_checkpoints
from finetune.training.checkpoints import describe, read_content

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def content(value: float) -> dict:
    return {
        "state_dict": {"w": torch.full((1000,), value)},
        "hyper_parameters": {},
        "finetune": describe(
            ("a", "b"), "test_resnet", Preprocessing(), network=NetworkSpec("test_resnet")
        ),
    }


def test_a_checkpoint_is_whole_at_every_moment(tmp_path: Path, monkeypatch) -> None:
    """Whatever a write has come to when the process ends, the old file can be read."""
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint(content(1.0), path)
    seen = []

    def look(*_: object) -> None:
        seen.append(float(read_content(path)["state_dict"]["w"][0]))

    for name in ("open", "fsync", "replace"):
        act = getattr(os, name)
        watched = lambda *args, act=act, **options: (look(), act(*args, **options))[1]  # noqa: E731
        monkeypatch.setattr(os, name, watched)
    io.save_checkpoint(content(2.0), path)
    monkeypatch.undo()
    look()
    assert seen[0] == 1.0
    assert seen[-1] == 2.0
    assert seen == sorted(seen)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_temporary_folder_without_room_is_no_reason_to_fail(
    run, colour_folder, tmp_path: Path, monkeypatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("mkstemp", "NamedTemporaryFile", "TemporaryDirectory"):
        monkeypatch.setattr(tempfile, name, full)
    monkeypatch.setattr(shutil, "move", full)  # what crosses file systems
    run(colour_folder, tmp_path / "fit", "all", epochs=2)
    assert read_content(tmp_path / "fit" / "last.ckpt")["epoch"] == 1


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path, monkeypatch) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint(content(1.0), path)
    before = path.read_bytes()

    def no_room(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:  # torch tells no more than this
            raise RuntimeError("[enforce fail at inline_container.cc] . unexpected pos")  # noqa: B904

    monkeypatch.setattr(torch, "save", no_room)
    with pytest.raises(OutputError, match=r"last\.ckpt.*room"):
        io.save_checkpoint(content(2.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_read_is_checked(tmp_path: Path) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint(content(1.0), path)
    changed = path.read_bytes().replace(torch.full((8,), 1.0).numpy().tobytes(), b"\1" * 32, 1)
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="changed"):
        io.load_checkpoint(path)


def test_a_way_of_the_users_own_stays() -> None:
    class Own(TorchCheckpointIO):
        pass

    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    assert isinstance(
        use_atomic_checkpoints(Trainer(**options)).strategy.checkpoint_io, AtomicCheckpointIO
    )
    own = Trainer(plugins=[Own()], **options)
    assert type(use_atomic_checkpoints(own).strategy.checkpoint_io) is Own
