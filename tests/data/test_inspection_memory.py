"""What was found out about a file is remembered as long as the file is the same, and whole."""

import json
import multiprocessing
import os
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.cache_dir import HEADER_BYTES
from finetune.data import inspection, inspection_memory
from finetune.data.cache import CachedReader, MemoryReader
from finetune.data.decoding import ImageReader
from finetune.data.inspection import Inspection, inspect_file, inspect_files
from finetune.data.tar_shards import index_of
from finetune.spec.images import within

GROUP = "0123456789abcdef"


@pytest.fixture
def bitmaps(tmp_path: Path) -> list[Path]:
    """Files of one size, whatever their pixels."""
    folder = tmp_path / "r"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 16), (number, 0, 0)).save(folder / f"{number}.bmp")
    return sorted(folder.iterdir())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def counted(path: Path, **options: object) -> Inspection:
        names.append(path.name)
        return inspect_file(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inspection, "inspect_file", counted)
    return names


def inspect(paths: list[Path], cache_dir: Path) -> list[Inspection]:
    return inspect_files(paths, root=paths[0].parent, cache_dir=cache_dir)


def memory_in(cache_dir: Path) -> Path:
    (path,) = cache_dir.glob("*/inspections/*")
    return path


def rewritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replaced(path: Path, content: bytes) -> None:
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


def moved_over(path: Path, content: bytes) -> None:
    """As an archive's tool does: the new file has the old one's times before it gets its name."""
    beside = path.with_name("new")
    beside.write_bytes(content)
    os.utime(beside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    beside.replace(path)


@pytest.mark.parametrize("exchange", [rewritten, replaced, moved_over])
def test_files_exchanged_at_equal_size_and_time_are_noticed(
    bitmaps: list[Path], tmp_path: Path, exchange: Callable[[Path, bytes], None]
) -> None:
    reader = ImageReader(short_side=12)
    readers = [CachedReader(reader, tmp_path / "c", GROUP), MemoryReader(reader)]
    first, second = bitmaps[:2]
    hashes = [each.content_hash for each in inspect([first, second], tmp_path / "c")]
    for read in readers:
        read(first), read(second)
    contents, times = first.read_bytes(), first.stat()
    others, other_times = second.read_bytes(), second.stat()
    os.utime(second, ns=(times.st_atime_ns, times.st_mtime_ns))
    exchange(first, others)
    exchange(second, contents)
    for path in (first, second):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert first.stat().st_size == times.st_size == other_times.st_size
    assert [each.content_hash for each in inspect([first, second], tmp_path / "c")] == hashes[::-1]
    for read in (*readers, CachedReader(reader, tmp_path / "c", GROUP)):
        for path in (first, second):
            np.testing.assert_array_equal(read(path), reader(path))


def test_a_file_that_can_no_longer_be_read_is_a_problem(
    bitmaps: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(bitmaps, tmp_path / "c")
    real_access, real_read = os.access, Path.read_bytes

    def access(path: Path, mode: int) -> bool:
        return path != bitmaps[1] and real_access(path, mode)

    def read_bytes(path: Path) -> bytes:
        if path == bitmaps[1]:
            raise PermissionError(13, "Permission denied")
        return real_read(path)

    monkeypatch.setattr(os, "access", access)  # root may read everything: no chmod here
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    problems = [each.problem for each in inspect(bitmaps, tmp_path / "c")]
    assert problems == [None, "cannot be opened: Permission denied", None]


def sealed(change: Callable[[str, list[int]], object]) -> Callable[[Path], None]:
    """Lines of right checksums that say something else."""

    def damage(path: Path) -> None:
        header, content = path.read_bytes()[:HEADER_BYTES], path.read_bytes()[HEADER_BYTES:]
        for line in content.splitlines():
            name, stamp, _ = json.loads(line[9:])
            new = json.dumps(change(name, stamp)).encode() + b"\n"
            header += b"%08x %s" % (zlib.crc32(new), new)
        path.write_bytes(header)

    return damage


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "header alone": lambda path: os.truncate(path, HEADER_BYTES),
    "truncated": lambda path: os.truncate(path, 300),
    "text": lambda path: path.write_text("{damaged"),
    "fifo": replaced_by(os.mkfifo),
    "folder": replaced_by(Path.mkdir),
    "link to a device": replaced_by(lambda path: path.symlink_to("/dev/zero")),
    "a list": sealed(lambda *_: []),
    "numbers": sealed(lambda name, _: [name, 1, 1]),
    "no stamp": sealed(lambda name, _: [name, None, {}]),
    "no values": sealed(lambda name, stamp: [name, stamp, {}]),
    "unknown values": sealed(lambda name, stamp: [name, stamp, {"odd": 1}]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_odd_memory_is_not_believed(
    bitmaps: list[Path], tmp_path: Path, opened: list[str], damage: str
) -> None:
    expected = inspect(bitmaps, tmp_path / "c")
    DAMAGES[damage](memory_in(tmp_path / "c"))
    for times in (2, 2):  # opened again once, then remembered
        assert inspect(bitmaps, tmp_path / "c") == expected
        assert len(opened) == times * len(bitmaps)


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_changed_byte_is_believed(
    bitmaps: list[Path], tmp_path: Path, data: st.DataObject
) -> None:
    cache_dir = tmp_path / "c"
    expected = [inspect_file(path) for path in bitmaps]
    assert inspect(bitmaps, cache_dir) == expected
    for path in list(cache_dir.glob("*/inspections/*"))[1:]:
        path.unlink()
    path = memory_in(cache_dir)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert inspect(bitmaps, cache_dir) == expected


def _inspect_some(paths: list[Path], cache_dir: Path) -> None:
    for path in paths:
        inspect([path], cache_dir)


def test_processes_remember_at_once(bitmaps: list[Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    orders = [bitmaps, bitmaps[::-1], bitmaps * 2]
    processes = [
        context.Process(target=_inspect_some, args=(order, tmp_path / "c")) for order in orders
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    expected = [inspect_file(path) for path in bitmaps]
    assert inspect(bitmaps, tmp_path / "c") == expected


def test_no_place_to_remember_costs_time_alone(
    bitmaps: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [inspect_file(path) for path in bitmaps]

    def full(file: object, data: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(inspection_memory, "write_all", full)
        assert inspect(bitmaps, tmp_path / "c") == expected
        assert list((tmp_path / "c").glob("*/inspections/*")) == []
    (tmp_path / "file").write_text("not a folder")
    assert inspect(bitmaps, tmp_path / "file") == expected


def test_a_shard_is_indexed_once_whatever_it_is_called(bitmaps: list[Path], tmp_path: Path) -> None:
    shard = tmp_path / "r/x.tar"
    with tarfile.open(shard, "w") as file:
        for path in bitmaps:
            file.add(path, path.name)
    index = index_of(shard)
    assert index_of(Path(os.path.relpath(shard))) is index
    sizes = {name: place.size for name, place in index.places.items()}
    assert sizes == {path.name: path.stat().st_size for path in bitmaps}


def test_of_many_images_little_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the results only a few are at work, and what is remembered is written as it comes."""
    shard, number = tmp_path / "r/x.tar", 4000
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as file:
        for index in range(number):
            file.addfile(tarfile.TarInfo(f"{index}.png"))
    paths = [within(shard, f"{index}.png") for index in range(number)]

    def seen(path: Path, **_: object) -> Inspection:
        return Inspection(path, 7, content_hash=f"{path.name:>32}", format="PNG", mode="RGB")

    monkeypatch.setattr(inspection, "inspect_file", seen)
    for again in (False, True):
        tracemalloc.start()
        found = inspect_files(paths, root=shard.parent, cache_dir=tmp_path / "c")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [each.path for each in found] == paths
        assert peak < 1200 * number, (again, peak / number)
