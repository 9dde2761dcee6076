"""Files appear whole or not at all, and nothing stays beside them."""

import errno
import os
from pathlib import Path

import pytest

from finetune.errors import FinetuneError, OutputError
from finetune.files import atomic_write, write_bytes, write_text


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


def test_of_two_that_write_once_the_second_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "new.ckpt"

    def write_late() -> None:
        with atomic_write(target, exclusive=True) as beside:
            beside.write_text("late")
            write_text(target, "early", exclusive=True)

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
    write_text(target, "first", exclusive=True)
    with pytest.raises(OutputError):
        write_text(target, "second", exclusive=True)
    assert target.read_text() == "first"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
