"""Files appear whole or not at all, and nothing stays beside them."""

import ast
import errno
import os
import re
from pathlib import Path

import pytest

from finetune.errors import FinetuneError, OutputError
from finetune.files import (
    append_text,
    atomic_folder,
    atomic_write,
    remove_left_behind,
    write_bytes,
    write_text,
)

PACKAGE = Path(__file__).parents[1] / "src" / "finetune"
# Caches, which append and are never believed; and the terminal, which opens /dev/null.
WRITE_THEMSELVES = {
    "files.py",
    "cache_dir.py",
    "commands/terminal.py",
}
# What `atomic_write` has given, and streams in memory or onto it.
MAY_BE_WRITTEN = {"beside", "content", "file", "raw", "small"}
RENAME = {"rename", "renames", "symlink", "symlink_to", "link", "hardlink_to", "mkstemp", "mkdtemp"}
COPY = {"copy", "copy2", "copyfile", "move", "NamedTemporaryFile", "TemporaryFile"}
SAVE = {"save", "savefig", "save_file", "save_model", "save_for_hf", "open_memmap", "to_csv"}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    write_text(target, "old\n")
    with atomic_write(target) as beside:
        beside.write_text("new")
        assert target.read_text() == "old\n"
        assert beside.suffix == ".csv"
        assert beside.parent == tmp_path
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_the_old_file_and_nothing_beside(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    target = tmp_path / "table.csv"
    write_bytes(target, b"old")

    def write_half() -> None:
        with atomic_write(target) as beside:
            beside.write_bytes(b"half of the n")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_is_told_with_the_path(tmp_path: Path) -> None:
    target = tmp_path / "best.ckpt"
    full = pytest.raises(OutputError, match=r"best\.ckpt.*No space left")
    with full as caught, atomic_write(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(caught.value, FinetuneError)
    assert isinstance(caught.value, OSError)
    assert os.listdir(tmp_path) == []


def test_text_is_added_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "a\n")
    append_text(path, "ü\n")
    assert path.read_bytes() == "a\nü\n".encode()
    with pytest.raises(OutputError, match=r"nowhere/x\.csv"):
        append_text(tmp_path / "nowhere" / "x.csv", "")


def test_what_killed_processes_left_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = []
    for name in ("best.ckpt", "noend", "an odd - name.tar.gz"):
        with atomic_write(tmp_path / name) as beside:
            left.append(beside.name)
    for name in left:  # as if the process had not lived to tidy up
        (tmp_path / name).touch()
    others = [*os.listdir(tmp_path), ".hidden", ".best-0123.ckpt", "x-0123456789abcdef.ckpt"]
    others = [name for name in others if name not in left]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".link-0123456789abcdef.ckpt").symlink_to("best.ckpt")
    (tmp_path / ".folder-0123456789abcdef").mkdir()
    remove_left_behind(tmp_path)
    kept = {*others, ".link-0123456789abcdef.ckpt", ".folder-0123456789abcdef"}
    assert set(os.listdir(tmp_path)) == kept


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(errno.EPIPE, "gone"), FileNotFoundError(errno.ENOENT, "gone", "t.png")],
)
def test_what_else_fails_within_is_not_blamed_on_the_target(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error), match="gone"), atomic_write(tmp_path / "t"):
        raise error
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/x\.txt"):
        write_text(tmp_path / "nowhere" / "x.txt", "")


def test_a_link_at_the_target_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("mine")
    link = tmp_path / "link.txt"
    link.symlink_to(theirs)
    write_text(link, "new")
    assert theirs.read_text() == "mine"
    assert not link.is_symlink()


def test_names_beside_are_never_the_same(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with atomic_write(target) as one, atomic_write(target) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert target.read_text() == "1"  # the outer block ends last


def write_once(target: Path, text: str) -> None:
    with atomic_write(target, exclusive=True) as beside:
        beside.write_text(text)


def test_of_two_that_write_once_the_second_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "new.ckpt"

    def write_late() -> None:
        with atomic_write(target, exclusive=True) as beside:
            beside.write_text("late")
            write_once(target, "early")

    with pytest.raises(OutputError, match="no file yet"):
        write_late()
    assert target.read_text() == "early"
    assert os.listdir(tmp_path) == ["new.ckpt"]


def test_without_hard_links_an_existing_file_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "links are not supported here")

    monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "new.ckpt"
    write_once(target, "first")
    with pytest.raises(OutputError):
        write_once(target, "second")
    assert target.read_text() == "first"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def write_folder(target: Path, text: str) -> None:
    with atomic_folder(target) as beside:
        (beside / "figures").mkdir()
        write_text(beside / "figures" / "a.png", text)
        write_text(beside / "index.html", text)
        if text == "half":
            raise ValueError(text)


def test_nothing_is_moved_through_a_link(tmp_path: Path) -> None:
    theirs, target, link = tmp_path / "theirs", tmp_path / "report", tmp_path / "link"
    theirs.mkdir()
    target.mkdir()
    link.symlink_to(theirs)
    (target / "figures").symlink_to(theirs)
    for place in (target, link):
        with pytest.raises(OutputError, match="link"):
            write_folder(place, "new")
    assert not list(theirs.iterdir())
    assert sorted(os.listdir(tmp_path)) == ["link", "report", "theirs"]


def test_a_folder_appears_as_a_whole_and_keeps_what_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "report"
    for text in ("old", "new"):
        write_folder(target, text)
        (target / "mine.txt").write_text("mine")
    assert (target / "figures" / "a.png").read_text() == "new"
    assert sorted(os.listdir(target)) == ["figures", "index.html", "mine.txt"]
    with pytest.raises(OutputError, match="no folder yet"), atomic_folder(target, exclusive=True):
        pass
    with pytest.raises(ValueError, match="half"):
        write_folder(target, "half")
    assert (target / "index.html").read_text() == "new"
    assert os.listdir(tmp_path) == ["report"]


FILES = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("path", sorted(FILES - WRITE_THEMSELVES))
def test_nothing_else_writes_or_renames_files(path: str) -> None:
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [ast.unparse(call) for call in calls if writes_by_itself(call)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(path, 'w')", True),
        ("path.open(mode='ab')", True),
        ("os.replace(a, b)", True),
        ("found.replace(self.best)", True),
        ("path.write_text('x')", True),
        ("shutil.copy2(a, b)", True),
        ("image.save(folder / 'a.png')", True),
        ("beside.open('w')", False),
        ("image.save(beside)", False),
        ("open(path, 'rb')", False),
        ("name.replace(os.sep, '/')", False),
        ("replace(image, path=path)", False),
    ],
)
def test_what_counts_as_writing(code: str, expected: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert writes_by_itself(call) == expected


def writes_by_itself(call: ast.Call) -> bool:
    """Whether a call renames, or writes under a name that `atomic_write` has not given."""
    function = call.func
    if not isinstance(function, ast.Attribute):
        name = getattr(function, "id", "")
        return name == "open" and is_for_writing(call)
    name, owner = function.attr, ast.unparse(function.value)
    # `Path.replace` takes one path, `str.replace` two texts.
    moves = name in RENAME or (name == "replace" and (owner == "os" or len(call.args) == 1))
    if moves or (name in COPY and owner in {"shutil", "tempfile"}):
        return True
    writes = name in {*SAVE, "write_text", "write_bytes"}
    writes |= name == "open" and owner != "os" and is_for_writing(call)
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    return writes and not names & MAY_BE_WRITTEN


def is_for_writing(call: ast.Call) -> bool:
    values = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
    modes = [str(each.value) for each in values if isinstance(each, ast.Constant)]
    return any(re.fullmatch("[rwxabt+]{1,3}", m) and set(m) & set("wxa+") for m in modes)
