"""What other systems refuse is refused here, while the verbs run: files in use, fork, links."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from finetune.cli import _in_one_line, main
from finetune.commands.runs import new_run_folder

SMALL = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--model.strategy=head-then-all",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--data.num_workers=0",
    "--name=run",
)


def in_use(path: Path) -> bool:
    """Whether this process has a file open, or mapped into its memory."""
    name = os.path.abspath(path)
    opened = set()
    for each in Path("/proc/self/fd").iterdir():
        try:
            opened.add(os.readlink(each))
        except FileNotFoundError:  # the one that lists them
            continue
    return name in opened or f" {name}\n" in Path("/proc/self/maps").read_text()


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in use are neither renamed, replaced nor removed; there is no fork, and no link."""

    def refusing(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*paths: Any, dir_fd: int | None = None, **options: Any) -> Any:
            beside = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            for each in paths:
                place = Path(beside, os.fspath(each))
                if place.is_file() and in_use(place):
                    raise PermissionError(13, "in use by another process", str(place))
            given = options if dir_fd is None else {**options, "dir_fd": dir_fd}
            return act(*paths, **given)

        return acting

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(1314, "a required privilege is not held by the client")

    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, no_links)
    monkeypatch.delattr(os, "fork")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is asked of Linux")
@pytest.mark.usefixtures("as_on_windows")
def test_every_verb_closes_what_it_replaces(
    colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each twice, so that the second call replaces what the first has written and read."""
    data = f"--data.root={colour_folder}"
    cache = ["--data.cache=disk", f"--data.cache_dir={tmp_path / 'cache'}"]
    one, two = (f"runs/run-{number}/checkpoints/best.ckpt" for number in (1, 2))
    assert main(["fit", data, *SMALL, *cache]) == 0
    assert main(["fit", data, *SMALL, *cache, "--seed_everything=1"]) == 0
    assert not Path("runs/latest").exists()
    assert "run-2" in Path("runs/latest.txt").read_text()
    for call in (
        ["fit", "--resume=runs/run-1"],
        ["test", f"--ckpt_path={one}", data, "--trainer.accelerator=cpu"],
        ["average", one, two, "--output=average.ckpt"],
        ["ensemble", one, "average.ckpt", "--output=ensemble.ckpt"],
        ["predict", "ensemble.ckpt", str(colour_folder), "--output=answers.csv"],
        ["embed", one, str(colour_folder), "--output=features.npz"],
        ["split", str(colour_folder), "--output=split.csv"],
        ["report", one, "--output=report.html"],
    ):
        for _ in range(2):
            over = [] if call[0] in ("fit", "test") else ["--overwrite"]
            capsys.readouterr()
            assert main([*call, *over]) == 0, (call, capsys.readouterr().err)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "left behind"


@pytest.mark.usefixtures("as_on_windows")
def test_the_stand_in_refuses_what_is_open_or_mapped(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros(9))
    (tmp_path / "b.npy").touch()
    with (tmp_path / "a.npy").open("rb"), pytest.raises(PermissionError):
        (tmp_path / "b.npy").replace(tmp_path / "a.npy")
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with pytest.raises(PermissionError):
        (tmp_path / "a.npy").unlink()
    del mapped
    (tmp_path / "b.npy").replace(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),  # no room for their locks
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
    ],
    ids=["locks", "exited", "killed"],
)
def test_reading_processes_without_shared_memory_are_one_line(
    error: Exception,
    colour_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container whose /dev/shm is small, or missing."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", fails)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__del__", lambda self: None)
    call = ["fit", f"--data.root={colour_folder}", *SMALL, "--data.cache=off"]
    assert main([*call, "--data.num_workers=1", "--model.strategy=all"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "/dev/shm" in line
    assert "num_workers 0" in line


def test_a_full_disk_is_not_told_as_lost_readers() -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        told = RuntimeError("the file could not be written")
        told.__context__ = error
    assert "/dev/shm" not in _in_one_line("fit", told)


def test_a_run_whose_name_differs_in_case_alone_gets_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS and Windows ``Cats-1`` and ``cats-1`` are one folder."""
    make = os.mkdir

    def mkdir(path: Path, *rest: Any) -> None:
        there = {each.casefold() for each in os.listdir(Path(path).parent)}
        if Path(path).name.casefold() in there:
            raise FileExistsError(17, "File exists", str(path))
        make(path, *rest)

    monkeypatch.setattr(os, "mkdir", mkdir)
    folders = [new_run_folder(tmp_path / "runs", name) for name in ("Cats", "cats", "Cats")]
    assert [folder.name for folder in folders] == ["Cats-1", "cats-2", "Cats-3"]
