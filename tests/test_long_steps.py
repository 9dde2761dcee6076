"""What takes long is told, on standard error alone; what does not is not."""

import io
import os
import pty
import sys
import threading

import pytest

from finetune import long_steps
from finetune.long_steps import shown_steps, told
from finetune.processes import Place


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(long_steps.time, "monotonic", lambda: now[0])
    return now


def walk(clock: list[float], seconds: float, items: int = 10) -> list[int]:
    """A step of so many items and seconds an item."""
    seen = []
    for item in told(iter(range(items)), "Opening images", items):
        clock[0] += seconds
        seen.append(item)
    return seen


def test_a_log_gets_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with shown_steps():
        assert walk(clock, 12.0) == list(range(10))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Opening images: 30% after 36 s, about 84 s left",
        "Opening images: 60% after 72 s, about 48 s left",
        "Opening images: 90% after 108 s, about 12 s left",
    ]


def test_what_costs_much_is_said_at_once_with_what_costs_less(
    clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    with shown_steps():
        steps = told(iter(range(1000)), "Computing features", 1000, cheaper="; see finetune choose")
        next(steps)
        clock[0] += 9.0  # the first one warms up
        next(steps)
        clock[0] += 4.0
        next(steps)
        assert capsys.readouterr() == (
            "",
            "Computing features takes about 67 min; see finetune choose\n",
        )
        walk(clock, 12.0, 40)
    assert "takes about" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.4, "7 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert long_steps.in_words(seconds) == words


def test_nothing_of_what_is_short(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with shown_steps():
        walk(clock, 1.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("why", ["a library's call", "a quiet one", "not the first process"])
def test_silent(
    why: str,
    clock: list[float],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if why == "a library's call":
        walk(clock, 99.0)
    elif why == "a quiet one":
        with shown_steps(), shown_steps(False):
            walk(clock, 99.0)
    else:
        monkeypatch.setattr("finetune.long_steps.own_place", lambda: Place(rank=1, world_size=2))
        with shown_steps():
            walk(clock, 99.0)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_goes_again(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ours, theirs = pty.openpty()
    drawn = io.BytesIO()

    def read() -> None:
        while data := os.read(ours, 1024):
            drawn.write(data)
            if b"END" in data:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, shown_steps():
        monkeypatch.setattr(sys, "__stderr__", terminal)
        monkeypatch.setenv("TERM", "xterm")
        walk(clock, 2.0)
        terminal.write("END")
        terminal.flush()
        reader.join()
    os.close(ours)
    assert b"Opening images" in drawn.getvalue()
    assert capsys.readouterr() == ("", "")
