"""One rule for the outputs of all verbs: what is the user's stays as it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune import Ensemble
from finetune.cli import main
from finetune.exporting.tracing import trace


@dataclass(frozen=True)
class Verb:
    """A call whose words stand for files of the desk, and what it writes."""

    call: str
    output: str
    reads: str
    option: str = "--output"

    def __str__(self) -> str:
        return f"{self.call} {self.option}"


VERBS = [
    Verb("average CKPT TWO", "new.ckpt", reads="CKPT"),
    Verb("ensemble CKPT TWO", "new.ckpt", reads="TWO"),
    Verb("ensemble CKPT TWO --data.root DATA --output e.ckpt", "new.png", "TWO", "--figure"),
    Verb("calibrate CKPT --data.root DATA --share all", "new.ckpt", reads="CKPT"),
    Verb("export CKPT --format torch", "new.pt2", reads="CKPT"),
    Verb("split DATA", "new.csv", reads="IMAGE"),
    Verb("split DATA --manifest TABLE", "new.csv", reads="TABLE"),
    Verb("split DATA --previous TABLE", "new.csv", reads="TABLE"),
    Verb("predict CKPT IMAGE", "new.csv", reads="IMAGE"),
    Verb("predict CKPT DATA", "new.jsonl", reads="CKPT"),
    Verb("inspect CKPT", "new.png", "CKPT", "--filters"),
    Verb("explain CKPT IMAGE", "new.png", reads="IMAGE"),
    Verb("report TABLE", "new.html", reads="TABLE"),
    Verb("report TABLE --output page.html", "new.csv", "TABLE", "--suspects"),
    Verb("compare TABLE OTHER", "new.html", reads="TABLE"),
]


@dataclass(frozen=True)
class Desk:
    """A folder of everything that verbs read; beside it ``out``, a folder to write to."""

    folder: Path
    words: dict[str, Path]

    def run(self, verb: Verb, output: Path, *options: str) -> int:
        words = [str(self.words.get(word, word)) for word in verb.call.split()]
        return main([*words, verb.option, str(output), *options])

    def contents(self) -> dict[str, bytes]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}


TRACED: list[object] = []


def traced_once(ensemble: Ensemble) -> object:
    """Tracing takes seconds, and all tests here trace the same checkpoint."""
    if not TRACED:
        TRACED.append(trace(ensemble))
    return TRACED[0]


@pytest.fixture
def desk(
    write_probe: Callable[..., Path],
    colour_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    monkeypatch.setattr("finetune.reporting.report.draw_all", lambda *_: [])  # tested elsewhere
    monkeypatch.setattr("finetune.exporting.torch_file.trace", traced_once)
    (tmp_path / "out").mkdir()
    folder = tmp_path / "desk"
    data = Path(shutil.copytree(colour_folder, folder / "data"))
    for name, noise in (("one.ckpt", 0.0), ("two.ckpt", 0.1)):
        shutil.move(write_probe("written", size=32, noise=noise, root=str(data)), folder / name)
    rows = "".join(f"{data}/red/{n:02}.png,red,0.1,0.2,0.7\n" for n in range(12))
    for name in ("table.csv", "other.csv"):
        (folder / name).write_text(f"path,label,p:blue,p:green,p:red\n{rows}")
    return Desk(
        folder,
        {
            "CKPT": folder / "one.ckpt",
            "TWO": folder / "two.ckpt",
            "DATA": data,
            "IMAGE": data / "red" / "00.png",
            "TABLE": folder / "table.csv",
            "OTHER": folder / "other.csv",
        },
    )


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_what_exists_is_refused_and_replaced_with_overwrite(
    verb: Verb, desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / verb.output
    output.write_text("mine")
    assert desk.run(verb, output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert desk.run(verb, output, "--overwrite") == 0
    assert output.read_bytes()[:4] != b"mine"
    assert os.listdir(output.parent) == [verb.output]


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_nothing_is_written_over_what_is_read_or_among_the_images(
    verb: Verb, desk: Desk, tmp_path: Path
) -> None:
    ending = Path(verb.output).suffix
    source = desk.words[verb.reads]
    linked = tmp_path / "out" / f"linked{ending}"  # the same file by another name
    os.link(source, linked)
    (tmp_path / "way").symlink_to(desk.words["DATA"] / "red")
    before = desk.contents()
    places = [source, source.parent / ".." / source.parent.name / source.name, linked]
    places += [desk.words["DATA"] / "red" / verb.output, tmp_path / "way" / verb.output]
    for place in places:
        assert desk.run(verb, place) == desk.run(verb, place, "--overwrite") == 2, place
    assert desk.contents() == before
    assert linked.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_nothing_is_written_through_a_link_or_to_what_is_no_file(
    verb: Verb, desk: Desk, tmp_path: Path
) -> None:
    ending = Path(verb.output).suffix
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    out = tmp_path / "out"
    (out / f"link{ending}").symlink_to(theirs)
    (out / f"dangling{ending}").symlink_to(tmp_path / "nowhere")
    (out / f"folder{ending}").mkdir()
    os.mkfifo(out / f"pipe{ending}")
    before = sorted(os.listdir(out))
    for name in ("link", "dangling", "folder", "pipe", "none/x"):
        place = out / f"{name}{ending}"
        assert desk.run(verb, place) == desk.run(verb, place, "--overwrite") == 2, name
    assert desk.run(verb, out / "wrong.ending") == 2
    assert theirs.read_text() == "theirs"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(os.listdir(out)) == before


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_a_full_disk_and_one_who_was_quicker_are_told_in_one_line(
    verb: Verb,
    desk: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out" / verb.output

    def disk_is_full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def somebody_is_quicker(path: Path) -> None:
        if path.parent == output.parent:
            output.write_text("theirs")

    for sync, left in ((disk_is_full, []), (somebody_is_quicker, [verb.output])):
        monkeypatch.setattr("finetune.files.sync", sync)
        assert desk.run(verb, output) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert all(str(output) in line or "warning" in line for line in lines), lines
        assert os.listdir(output.parent) == left
    assert output.read_text() == "theirs"


def test_of_a_folder_that_is_there_other_files_stay(desk: Desk, tmp_path: Path) -> None:
    verb = Verb("export CKPT --format safetensors", "", reads="CKPT")
    output = tmp_path / "out"
    assert desk.run(verb, output / "new") == 0
    written = sorted(os.listdir(output / "new"))
    (output / "mine.txt").write_text("mine")
    assert desk.run(verb, output) == 2
    assert desk.run(verb, output, "--overwrite") == 0
    assert (output / "mine.txt").read_text() == "mine"
    assert sorted(os.listdir(output)) == sorted(["mine.txt", "new", *written])
    (tmp_path / "way").symlink_to(output)
    data = desk.words["DATA"]
    for place in (tmp_path / "way", data, data / "red", data / "new", output / "mine.txt"):
        assert desk.run(verb, place, "--overwrite") == 2, place
    assert sorted(os.listdir(data)) == ["blue", "green", "red"]


ON_A_FULL_DISK = """
import resource, sys
from finetune.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(*[main(call.split()) for call in sys.argv[1:]])
"""


def test_a_full_disk_ends_no_interpreter_and_leaves_nothing(desk: Desk, tmp_path: Path) -> None:
    one, two, data = (desk.words[word] for word in ("CKPT", "TWO", "DATA"))
    out = tmp_path / "out"
    calls = [
        f"average {one} {two} --output {out}/a.ckpt",
        f"ensemble {one} {two} --output {out}/e.ckpt",
        f"calibrate {one} --data.root {data} --share all --output {out}/c.ckpt",
        f"export {one} --format torch --output {out}/t.pt2",
        f"export {one} --format safetensors --output {out}/s",
        f"export {one} --format timm --output {out}/t",
    ]
    command = [sys.executable, "-W", "ignore", "-c", ON_A_FULL_DISK, *calls]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout.splitlines()[-1] == "1 1 1 1 1 1"
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    for line, call in zip(lines, calls, strict=True):
        assert call.split()[-1] in line
        assert "cannot be written" in line
    assert not list(out.iterdir())


def test_a_default_name_that_is_taken_gives_the_next_free_one(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path / "out")
    for number, name in enumerate(("report.html", "report-2.html", "report-3.html"), start=1):
        assert main(["report", str(desk.words["TABLE"])]) == 0
        assert f"report in {name}\n" in capsys.readouterr().out
        assert len(os.listdir()) == number
    assert main(["report", str(desk.words["TABLE"]), "--overwrite"]) == 0
    assert "report in report.html\n" in capsys.readouterr().out


def test_in_a_run_folder_our_page_is_replaced_and_no_other(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "out"
    page, foreign = run / "report" / "index.html", run / "notes.html"
    page.parent.mkdir()
    foreign.write_text("mine")
    call = ["report", str(desk.words["TABLE"]), "--output"]
    assert main([*call, str(page)]) == 0
    assert main([*call, str(page)]) == 2, "the folder is no run's"
    (run / "config.yaml").touch()
    assert main([*call, str(page)]) == 0
    assert main([*call, str(foreign)]) == 2
    assert foreign.read_text() == "mine"


def test_what_a_run_keeps_is_never_replaced(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "out"
    (run / "checkpoints").mkdir()
    shutil.copy(desk.words["CKPT"], run / "checkpoints" / "best.ckpt")
    (run / "report").mkdir()
    answers = run / "report" / "predictions.csv"
    shutil.copy(desk.words["TABLE"], answers)
    before = answers.read_bytes()
    call = ["report", str(run), "--output", str(run / "x.html"), "--suspects"]
    assert main([*call, str(answers), "--overwrite"]) == 2
    assert answers.read_bytes() == before
    assert main([*call, str(run / "report" / "suspects.csv")]) == 0
