"""What is printed acts on no terminal and needs no reader."""

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import cli
from finetune.commands.terminal import ShownText, shown, shown_streams


@given(st.text())
def test_nothing_that_acts_is_left(text: str) -> None:
    left = set(shown(text)) - {"\n", "\t"}
    assert not {c for c in left if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    if text.isprintable():
        assert shown(text) == text


def test_escapes_in_names_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("\x1b[31mred\x1b]0;title\x07", "a\rover"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        (folder / "\x1b[2J.jpg").write_bytes(b"no image")
    assert cli.main(["check", str(tmp_path / "images")]) == 1
    assert cli.main(["check", str(tmp_path / "\x1b[31mnowhere")]) == 1
    printed = capsys.readouterr()
    for text in printed:
        assert not set(text) & {"\x1b", "\r", "\x07"}
    assert r"a\rover" in printed.out
    assert r"\x1b[31mnowhere" in printed.err


def test_a_line_break_in_a_name_breaks_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("a\nkind", "another"):
        folder = tmp_path / "images" / kind
        folder.mkdir(parents=True)
        (folder / "an\n\timage.jpg").write_bytes(b"no image")
    assert cli.main(["check", str(tmp_path / "images")]) == 1
    assert cli.main(["fit", f"--data.root={tmp_path / 'images'}"]) == 1
    printed = capsys.readouterr()
    for text in printed:
        assert r"an\n\timage.jpg" in text
        assert not any(line.startswith(("kind", "image", "\timage")) for line in text.splitlines())
    assert len(printed.err.splitlines()) == 1


class BrokenPipe(io.StringIO):
    """The writing end of a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptor = os.open(os.devnull, os.O_WRONLY)

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return self.descriptor


def test_long_work_goes_on_without_a_reader() -> None:
    stream = ShownText(BrokenPipe(), needs_reader=False)
    assert stream.write("a line that nobody reads") == 24


def test_what_only_prints_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def prints(arguments: list[str]) -> int:
        print("a line")
        raise AssertionError("printed to nobody and went on")

    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    monkeypatch.setattr("finetune.commands.models.main", prints, raising=False)
    assert cli.main(["models"]) == cli.OK


@pytest.mark.parametrize(("verb", "code"), [("sample", cli.FAILED), ("models", cli.OK)])
def test_a_pipe_that_breaks_elsewhere_is_no_success_of_what_writes(
    verb: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(arguments: list[str]) -> int:
        raise BrokenPipeError(32, "Broken pipe")  # of a worker, a tracker, ...

    monkeypatch.setattr(f"finetune.commands.{verb}.main", breaks, raising=False)
    assert cli.main([verb]) == code
    assert ("Broken pipe" in capsys.readouterr().err) == (code == cli.FAILED)


def test_closed_streams_are_none_to_fail_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with shown_streams(needs_reader=True):
        print("nobody")
        sys.stdout.flush()
    assert sys.stdout is None


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["check", "--help"], ["fti"]])
@pytest.mark.parametrize("closing", ["| head -0", ">&-", "2>&-", ">&- 2>&-"])
def test_pipes_and_closed_streams_give_no_traceback(
    arguments: list[str], closing: str, tmp_path: Path
) -> None:
    command = f'"{sys.executable}" -P -m finetune {" ".join(arguments)} {closing}; exit 0'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_fit_does_not_depend_on_its_output_being_read(
    colour_folder: Path, tmp_path: Path
) -> None:
    options = f"--data.root {colour_folder} --name read --data.cache off"
    small = "--model.backbone baseline_mlp --model.pretrained false --trainer.max_epochs 1"
    command = f'"{sys.executable}" -P -m finetune fit {options} {small} | head -1'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "read-1" / "metrics.json").is_file()


def test_a_fault_of_ours_is_one_line_that_names_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: list[str]) -> int:
        raise KeyError("momentum")

    monkeypatch.setattr("finetune.commands.models.main", fails, raising=False)
    assert cli.main(["models"]) == cli.FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "models failed" in error
    assert "--debug" in error
    with pytest.raises(KeyError):
        cli.main(["models", "--debug"])
