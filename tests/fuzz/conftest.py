"""What every fuzzed call is held to, and the changes that are made to good files.

Seeds are fixed. ``FUZZ=20`` makes twenty times as many changes (``make fuzz``).
"""

import copy
import math
import os
import random
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main

MOST_BYTES = 2 * 2**30  # of memory, beside what this process has when a call begins
MOST_SECONDS = 20
# What a value is replaced by.
ODD = [None, True, -1, 0, 1.5, math.nan, 2**70, "", "x" * 9, [], {"a": 1}]
NOTES = ("warning:", "left out ")  # beside an answer
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.")
COLOURS_FIT = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--model.strategy=head",
    "--trainer.accelerator=cpu",
    "--data.num_workers=0",
    "--name=run",
)

_heard: list[str] = []
_listening = False


def _hear(event: str, _: object) -> None:
    if _listening and event.startswith(FORBIDDEN):
        _heard.append(event)


sys.addaudithook(_hear)  # stays for good


class Fuzzing:
    """Good files changed, and calls of verbs with them."""

    times = int(os.environ.get("FUZZ", "1"))

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.random = random.Random(0)

    def call(self, *arguments: str | Path, about: object = "", seconds: int = MOST_SECONDS) -> int:
        """A verb's exit code: it has answered, or said in one clear line why it does not."""
        global _listening
        self._capfd.readouterr()
        _heard.clear()
        with _bounded(seconds), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            _listening = True
            try:
                code = main([str(each) for each in arguments])
            finally:
                _listening = False
        said = self._capfd.readouterr().err
        lines = [line for line in said.splitlines() if not line.startswith(NOTES)]
        told = (about, code, said)
        assert code in (0, 1, 2), told
        assert "in a way that it should not" not in said, told
        # `check` may fail by what it has found and printed alone.
        assert len(lines) == (code != 0) or (arguments[0] == "check" and not lines), told
        assert all(line.startswith("finetune: ") and len(line) < 1500 for line in lines), told
        assert _heard == [], (about, _heard)
        raw = [str(each.message) for each in warned if "lightning" not in each.filename]
        assert raw == [], (about, raw)
        return code

    def damaged(self, content: bytes, few: int) -> Iterator[bytes]:
        """A file with bytes changed, cut, doubled, or filled with others."""
        for _ in range(few * self.times):
            changed = bytearray(content)
            at = self.random.randrange(len(content))
            some = self.random.choice((1, 4, 64))
            kind = self.random.choice(("flip", "flip", "cut", "remove", "repeat", "fill"))
            if kind == "flip":
                for _ in range(some):
                    where = self.random.randrange(len(content))
                    changed[where] ^= self.random.randrange(1, 256)
            elif kind == "cut":
                del changed[at:]
            elif kind == "remove":
                del changed[at : at + some]
            elif kind == "repeat":
                changed[at:at] = changed[at : at + some]
            else:
                changed[at : at + some] = self.random.choice((b"\0", b"\xff")) * some
            yield bytes(changed)

    def replaced(self, values: Any, few: int) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
        """Where, by what, and the values with one of them replaced by an odd one."""
        everything = [(at, odd) for at in places(values) for odd in ODD]
        for at, odd in self.random.sample(everything, min(few * self.times, len(everything))):
            changed = copy.deepcopy(values)
            inner = changed
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = odd
            yield at, odd, changed


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value, containers included."""
    if at:
        yield at
    items = values.items() if isinstance(values, dict) else ()
    if isinstance(values, list):
        items = enumerate(values[:2])
    for key, value in items:
        yield from places(value, (*at, key))


@contextmanager
def _bounded(seconds: int) -> Iterator[None]:
    """An end to what takes too long or too much."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def fuzzing(capfd: pytest.CaptureFixture[str]) -> Fuzzing:
    return Fuzzing(capfd)


@pytest.fixture(scope="module")
def run(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted run; not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    call = ["fit", f"--data.root={colour_folder}", f"--runs={folder}", *COLOURS_FIT]
    assert main([*call, "--data.cache=off"]) == 0
    return folder / "run-1"
