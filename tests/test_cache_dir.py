import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.cache_dir import HEADER_BYTES, NAME, SIGNATURE, TAG, CachedFiles, file_stamp

GROUP = "0123456789abcdef"
OURS = f"{GROUP}-{'f' * 32}"


@pytest.fixture
def files(tmp_path: Path) -> CachedFiles:
    return CachedFiles(tmp_path / "named by the user", "kind", 1)


def write(files: CachedFiles, content: bytes, used: float, group: str = GROUP) -> Path:
    path = files.new_path(group, ".rows")
    with files.create(path) as file:
        file.write(content)
    os.utime(path, (used, used))
    return path


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder, with what could show that somebody touched it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        small = stat.S_ISREG(status.st_mode) and status.st_size < 10**6
        content = path.read_bytes() if small else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


def plant(folder: Path, header: bytes, elsewhere: Path) -> None:
    """What strangers may keep in a folder, as near to our own files as they come."""
    for below in (folder, folder / "mine", folder / GROUP):
        below.mkdir(parents=True, exist_ok=True)
        for name in ("embeddings.h5", ".hidden.npy", "a.npy", "notes.features", f"{OURS}x.rows"):
            (below / name).write_bytes(b"hard to get again")
            os.utime(below / name, (1, 1))
    (folder / f"{OURS}.rows").write_bytes(b"our name, not our header")
    (folder / f"{GROUP}-{'e' * 32}.rows").write_bytes(header[:20])
    (folder / "our header, not our name.rows").write_bytes(header + bytes(1000))
    (folder / f"{GROUP}-{'d' * 32}.rows").mkdir()
    (folder / f"{GROUP}-{'c' * 32}.rows" / "file").parent.mkdir()
    (folder / f"{GROUP}-{'c' * 32}.rows" / "file").write_bytes(header)
    elsewhere.mkdir()
    (elsewhere / "target").write_bytes(header + bytes(1000))
    (folder / f"{GROUP}-{'b' * 32}.rows").symlink_to(elsewhere / "target")
    (folder / f"{GROUP}-{'a' * 32}.rows").symlink_to(elsewhere)
    os.mkfifo(folder / f"{GROUP}-{'9' * 32}.rows")
    with (folder / "large.bin").open("wb") as file:
        file.truncate(2**40)  # sparse


def test_eviction_leaves_everything_alone_that_is_not_provably_ours(
    files: CachedFiles, tmp_path: Path
) -> None:
    own = [write(files, bytes(1000), used) for used in (3, 1, 2)]
    for number, folder in enumerate([files.root.parent, files.root, files.folder]):
        plant(folder, files.header, tmp_path / f"elsewhere {number}")
    before = tree(tmp_path)
    size = 1000 + HEADER_BYTES
    assert files.evict(10**9) == 3 * size  # nothing else is counted
    assert files.evict(3 * size) == 2 * size
    assert [path.exists() for path in own] == [True, False, True]
    assert files.evict(0) == 0
    del before[str(own[0])], before[str(own[1])], before[str(own[2])]
    left = tree(tmp_path)
    assert left.pop(str(files.folder))[:2] == before.pop(str(files.folder))[:2]
    assert left == before


def test_the_longest_unused_go_first_whatever_else_was_deleted(files: CachedFiles) -> None:
    old, used, new, kept = (write(files, bytes(100), age) for age in (1, 2, 4, 0))
    write(files, bytes(100), 3).unlink()  # changes the folder's time, not any file's
    files.used(used)
    size = 100 + HEADER_BYTES
    assert files.evict(3 * size, keep=kept.stem) == 2 * size
    assert [path.exists() for path in (old, used, new, kept)] == [False, True, False, True]


def test_files_that_differ_in_their_ending_go_together(files: CachedFiles) -> None:
    path = write(files, bytes(100), 1)
    beside = path.with_suffix(".index")
    beside.write_bytes(files.header)
    assert files.evict(10) == 0
    assert not path.exists()
    assert not beside.exists()


def test_files_of_another_version_are_deleted_in_their_turn_but_not_read(
    files: CachedFiles,
) -> None:
    old, new = write(files, b"", 1), CachedFiles(files.root.parent, "kind", 2)
    with pytest.raises(PermissionError):
        new.open(old)
    assert new.evict(0) == 0
    assert not old.exists()
    write(files, b"", 1)
    another = CachedFiles(files.root.parent, "another", 1)
    files.folder.rename(another.folder)
    assert another.evict(0) == 0
    assert len(list(another.folder.iterdir())) == 1


@pytest.mark.parametrize("where", ["root", "folder"])
def test_folders_that_are_links_are_not_entered(
    files: CachedFiles, tmp_path: Path, where: str
) -> None:
    path = write(files, bytes(100), 1)
    linked = getattr(files, where)
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    assert files.listed(GROUP, ".rows") == []
    assert files.evict(0) == 0
    with pytest.raises(OSError, match=NAME):
        files.create(files.new_path(GROUP, ".rows"))
    assert tree(tmp_path) == before
    assert path.exists()


def test_the_folder_says_that_it_is_a_cache(files: CachedFiles) -> None:
    write(files, b"", 1)
    assert files.root.name == NAME
    assert (files.root / TAG).read_bytes().startswith(SIGNATURE + b"\n")
    (files.root / TAG).write_bytes(b"")  # killed between two system calls
    write(files, b"", 1)
    assert (files.root / TAG).read_bytes().startswith(SIGNATURE + b"\n")


@pytest.mark.parametrize("tag", [None, b"somebody else's", "link", "fifo"])
def test_a_folder_of_our_name_that_is_not_ours_is_left_alone(
    files: CachedFiles, tmp_path: Path, tag: bytes | str | None
) -> None:
    files.root.mkdir(parents=True)
    (files.root / "data").write_text("of a stranger")
    if tag == "link":
        (files.root / TAG).symlink_to(tmp_path / "nowhere")
    elif tag == "fifo":
        os.mkfifo(files.root / TAG)
    elif isinstance(tag, bytes):
        (files.root / TAG).write_bytes(tag)
    before = tree(tmp_path)
    with pytest.raises(OSError, match=NAME):
        files.create(files.new_path(GROUP, ".rows"))
    assert tree(tmp_path) == before


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_private_until_the_folder_is_opened_to_others(files: CachedFiles) -> None:
    private = write(files, b"", 1)
    assert {mode(private), mode(files.root / TAG)} == {0o600}
    assert {mode(files.root), mode(files.folder)} == {0o700}
    files.root.chmod(0o2770)
    assert mode(write(files, b"", 1)) == 0o660
    other = CachedFiles(files.root.parent, "another", 1)
    write(other, b"", 1)
    assert mode(other.folder) == 0o2770


def with_other(found: os.stat_result, **values: object) -> SimpleNamespace:
    names = (name for name in dir(found) if name.startswith("st_"))
    return SimpleNamespace(**{name: getattr(found, name) for name in names} | values)


def test_another_users_folder_is_used_only_where_it_is_shared(
    files: CachedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(files, b"theirs", 1)
    owner, real = path.stat().st_uid, os.lstat

    def lstat(path: str | Path, **options: object) -> os.stat_result | SimpleNamespace:
        found = real(path, **options)  # type: ignore[arg-type]
        return with_other(found, st_uid=owner + 2) if path == files.root else found

    monkeypatch.setattr("finetune.cache_dir._user", lambda: owner + 1)
    monkeypatch.setattr(os, "lstat", lstat)
    for root, parent in ((0o700, 0o755), (0o755, 0o755), (0o777, 0o1777)):
        files.root.chmod(root)
        files.root.parent.chmod(parent)  # the last: anybody may have made it, it may be a trap
        with pytest.raises(PermissionError):
            files.open(path)
        with pytest.raises(PermissionError):
            files.create(files.new_path(GROUP, ".rows"))
        assert files.listed(GROUP, ".rows") == []
        assert files.evict(0) == 0
    files.root.parent.chmod(0o755)  # the user has named a place of somebody who lets others in
    with files.open(path) as file:
        assert file.read() == b"theirs"


def test_files_of_others_in_a_users_own_folder_are_not_believed_unless_it_is_shared(
    files: CachedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(files, b"planted", 1)
    real = os.fstat

    def of_somebody_else(descriptor: int) -> SimpleNamespace:
        return with_other(real(descriptor), st_uid=real(descriptor).st_uid + 1)

    monkeypatch.setattr(os, "fstat", of_somebody_else)
    with pytest.raises(PermissionError):
        files.open(path)
    assert files.evict(0) == 0
    assert path.exists()
    files.root.chmod(0o770)
    with files.open(path) as file:
        assert file.read() == b"planted"


def test_no_place_is_no_bytes(files: CachedFiles, tmp_path: Path) -> None:
    assert files.free_bytes() > 0
    assert not files.root.parent.exists()
    files.root.parent.write_text("a file where the folder should be")
    assert files.free_bytes() == 0
    with pytest.raises(OSError, match="named by the user"):
        files.create(files.new_path(GROUP, ".rows"))
    assert files.listed(GROUP, ".rows") == []
    assert files.evict(0) == 0


def test_a_stamp_shows_the_next_change_however_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many systems' clocks go on in steps of 1 to 10 ms: within one, two changes look alike."""
    real = os.stat

    def coarse(path: object, **options: object) -> SimpleNamespace:
        found = real(path, **options)  # type: ignore[arg-type]
        return with_other(found, st_ctime_ns=found.st_ctime_ns // 10**7 * 10**7)

    path = tmp_path / "image.bmp"
    path.touch()
    monkeypatch.setattr(os, "stat", coarse)
    stamps = set()
    for content in range(20):
        path.write_bytes(bytes([content]))
        os.utime(path, (1, 1))
        stamps.add(file_stamp(path))
    assert len(stamps) == 20
