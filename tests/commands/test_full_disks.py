"""A full disk costs one clear line; links that were planted and files of others stay as they are.

In the suite a process may write no file longer than some bytes; ``make torture`` tries many
lengths, and a small disk of its own where the user may mount one.
"""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main

TORTURE = "TORTURE" in os.environ
SMALL = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--model.strategy=partial:1",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--data.num_workers=0",
    "--name=run",
)
Calls = dict[str, list[str]]


@pytest.fixture
def calls(colour_folder: Path, tmp_path: Path, write_probe: Callable[..., Path]) -> Calls:
    """Every verb that writes, into the folder ``out``."""
    one, two = (str(write_probe(f"disk{seed}", noise=0.1, seed=seed)) for seed in range(2))
    data = f"--data.root={colour_folder}"
    image = str(next(colour_folder.rglob("*.png")))
    cache = f"--data.cache_dir={tmp_path / 'out' / 'cache'}"
    return {
        "fit": ["fit", data, *SMALL, "--runs=out/runs", "--data.cache=disk", cache],
        "test": ["test", f"--ckpt_path={one}", data, "--runs=out/tested"],
        "average": ["average", one, two, "--output=out/a.ckpt"],
        "ensemble": ["ensemble", one, two, "--output=out/e.ckpt"],
        "calibrate": ["calibrate", one, data, "--output=out/c.ckpt"],
        "predict": ["predict", one, str(colour_folder), "--output=out/p.csv"],
        "explain": ["explain", one, image, "--output=out/x.png"],
        "export": ["export", one, "--format=safetensors", "--output=out/exported"],
        "split": ["split", str(colour_folder), "--output=out/m.csv"],
        "sample": ["sample", "out/sample"],
    }


@contextmanager
def longest_file(length: int) -> Iterator[None]:
    """Writing beyond it fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def files(folder: Path) -> dict[str, Any]:
    """What a folder holds: of files the bytes, of links where they lead."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def failed_cleanly(call: list[str], said: str, before: dict[str, Any], out: Path) -> None:
    """One line, nothing half-written, and all that was there before is there still."""
    lines = [line for line in said.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, (call, said)
    assert lines[0].startswith("finetune: "), said
    assert "in a way that it should not" not in said, said
    left = {name: value for name, value in files(out).items() if not name.startswith("cache/")}
    assert not {name for name in left if Path(name).name.startswith(".")}, left.keys()
    assert {name: left.get(name) for name in before} == before
    assert not {name for name in left.keys() - before.keys() if name.endswith(".ckpt")}


@pytest.mark.parametrize("length", (0, 1, 100, 1000, 5000, 20_000, 60_000) if TORTURE else (10,))
def test_a_full_disk_is_one_line_and_loses_nothing(
    length: int, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "foreign.txt").write_text("of others")
    for call in calls.values():
        before = {k: v for k, v in files(out).items() if not k.startswith(("cache/", "runs/"))}
        capsys.readouterr()
        with longest_file(length):
            code = main(call)
        said = capsys.readouterr().err
        assert code in (0, 1), (call, said)
        if code:
            failed_cleanly(call, said, before, out)
    for call in calls.values():  # and with room again all goes well
        over = ["--overwrite"] if call[0] not in ("fit", "test", "sample") else []
        assert main([*call, *over]) == 0, (call, capsys.readouterr().err)
    assert (out / "foreign.txt").read_text() == "of others"


@pytest.mark.skipif(not TORTURE, reason="make torture mounts disks, where it may")
@pytest.mark.parametrize("kilobytes", [16, 64, 256, 1024])
def test_a_small_disk(
    kilobytes: int, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may mount no disk")
    try:
        for call in calls.values():
            before = {k: v for k, v in files(out).items() if not k.startswith(("cache/", "runs/"))}
            capsys.readouterr()
            code = main(call)
            said = capsys.readouterr().err
            assert code in (0, 1), (call, said)
            if code:
                failed_cleanly(call, said, before, out)
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)  # maps of the cache are open


def test_planted_links_and_foreign_files_stay_as_they_are(calls: Calls, tmp_path: Path) -> None:
    """Every target is a link to somebody else's file, and beside it lie files of others."""
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    theirs.mkdir()
    (out / "runs").mkdir(parents=True)
    for name in ("a.ckpt", "e.ckpt", "c.ckpt", "p.csv", "x.png", "m.csv", "latest"):
        (theirs / name).write_text(f"{name} of others")
    for name in ("a.ckpt", "e.ckpt", "c.ckpt", "p.csv", "x.png", "m.csv"):
        (out / name).symlink_to(theirs / name)
        (out / f".{name}.tmp").write_text("of others")
    (out / "runs" / "latest.txt").write_text("of others")
    (out / "runs" / "latest").symlink_to(theirs / "latest")
    (out / "exported").symlink_to(theirs)
    (out / "sample").symlink_to(theirs)
    (out / "cache").mkdir()
    (out / "cache" / "finetune-cache").symlink_to(theirs)
    before, foreign = files(theirs), files(out)
    for call in calls.values():
        over = ["--overwrite"] if call[0] not in ("fit", "test", "sample") else []
        main([*call, *over])
    assert files(theirs) == before
    targets = {Path(each).name for call in calls.values() for each in call if "out/" in each}
    after = files(out)
    for name, value in foreign.items():
        if name not in targets:
            assert after[name] == value, name
