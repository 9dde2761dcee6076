import json
import multiprocessing
import os
import resource
import signal
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.cache_dir import HEADER_BYTES
from finetune.training.features import shards
from finetune.training.features.shards import END
from finetune.training.features.store import FeatureStore, cached_or_computed

KEYS = [f"{number:032x}" for number in range(6)]


def row_of(key, width=5):
    return np.full(width, int(key, 16) + 0.5, dtype=np.float32)


def computing(keys, computed, width=5):
    """What `cached_or_computed` asks for missing rows; notes which keys these were."""

    def compute(missing):
        computed.extend(keys[index] for index in missing)
        for start in range(0, len(missing), 4):
            yield np.stack([row_of(keys[index], width) for index in missing[start : start + 4]])

    return compute


def answer(folder, keys=KEYS, space="space", width=5):
    """The rows for the keys, from a store as a new process opens it, and which were computed."""
    computed = []
    found = cached_or_computed(FeatureStore(folder), space, keys, computing(keys, computed, width))
    return found.tensor().numpy(), computed


def expected(keys=KEYS, width=5):
    return np.stack([row_of(key, width) for key in keys])


def shard_in(folder):
    (path,) = folder.glob("*/features/*.features")
    return path


def test_what_was_computed_once_is_read_by_the_next_process(tmp_path):
    for wanted in (KEYS[:4], KEYS[3:], KEYS[::-1]):
        rows, computed = answer(tmp_path, wanted)
        np.testing.assert_array_equal(rows, expected(wanted))
        assert computed == {0: KEYS[:4], 3: KEYS[4:], 5: []}[KEYS.index(wanted[0])]
    assert answer(tmp_path, space="another")[1] == KEYS


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changed_byte_is_computed_again(tmp_path, data):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    answer(folder)
    path = shard_in(folder)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    content[place] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(content)
    rows, computed = answer(folder)
    np.testing.assert_array_equal(rows, expected())
    inside_rows = HEADER_BYTES <= place < HEADER_BYTES + len(KEYS) * 20
    assert len(computed) == (1 if inside_rows else len(KEYS))
    assert answer(folder)[1] == []  # the new rows are taken, though the damaged ones are there


def swapped_rows(path):
    content = path.read_bytes()
    one, two = (slice(HEADER_BYTES + 20 * row, HEADER_BYTES + 20 * row + 20) for row in (1, 2))
    middle = content[two] + content[one]
    path.write_bytes(content[: one.start] + middle + content[two.stop :])


def payload(fill):
    def change(path):
        content = path.read_bytes()
        size = 20 * len(KEYS)
        path.write_bytes(content[:HEADER_BYTES] + fill(size) + content[HEADER_BYTES + size :])

    return change


def footer(**changed):
    """A footer of right checksum that says something else."""

    def change(path):
        content = path.read_bytes()
        length, _ = END.unpack(content[-END.size :])
        start = len(content) - END.size - length
        described = json.loads(content[start : -END.size]) | changed
        new = json.dumps(described).encode()
        end = END.pack(len(new), zlib.crc32(new))
        path.write_bytes(content[:start] + new + end)

    return change


def not_a_footer(text):
    def change(path):
        path.write_bytes(path.read_bytes() + text + END.pack(len(text), zlib.crc32(text)))

    return change


def replaced_by(make):
    def change(path):
        path.unlink()
        make(path)

    return change


DAMAGES = {
    "zeros": payload(bytes),
    "random": payload(os.urandom),
    "swapped rows": swapped_rows,
    "empty": lambda path: path.write_bytes(b""),
    "header alone": lambda path: os.truncate(path, HEADER_BYTES),
    "truncated": lambda path: os.truncate(path, 150),
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "numpy of the old format": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + bytes(500)),
    "text": lambda path: path.write_text("strings" * 100),
    "fifo": replaced_by(os.mkfifo),
    "folder": replaced_by(lambda path: path.mkdir()),
    "link to a device": replaced_by(lambda path: path.symlink_to("/dev/zero")),
    "another shape": footer(shape=[6, 1, 5]),
    "another row length": footer(shape=[3, 10]),
    "rows without end": footer(shape=[2**62, 2**62]),
    "negative shape": footer(shape=[-6, -5]),
    "no rows": footer(shape=[0, 5], keys=[], sums=[]),
    "no shape": footer(shape=[]),
    "shape of texts": footer(shape=["6", "5"]),
    "fewer keys": footer(keys=KEYS[:2]),
    "keys of lists": footer(keys=[[]] * 6),
    "keys of numbers": footer(keys=[1.5] * 6),
    "sums of texts": footer(sums=["a"] * 6),
    "sums missing": footer(sums=None),
    "another space": footer(space="another"),
    "nested": not_a_footer(b"[" * 100_000),
    "a list": not_a_footer(b"[1, 2]"),
    "not unicode": not_a_footer(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_odd_shards_are_computed_again(tmp_path, damage):
    answer(tmp_path)
    DAMAGES[damage](shard_in(tmp_path))
    for _ in range(2):
        rows, computed = answer(tmp_path)
        np.testing.assert_array_equal(rows, expected())
    assert computed == []


def test_a_shard_of_another_space_under_this_ones_name_is_not_used(tmp_path):
    answer(tmp_path, space="another")
    path = shard_in(tmp_path)
    answer(tmp_path)
    (own,) = set(tmp_path.glob("*/features/*")) - {path}
    own.write_bytes(path.read_bytes())
    assert answer(tmp_path)[1] == KEYS


def test_rows_of_another_width_are_computed_again(tmp_path):
    answer(tmp_path, KEYS[:3], width=7)  # as if the space did not say all that decides a row
    for wanted in (KEYS, KEYS[2:]):
        np.testing.assert_array_equal(answer(tmp_path, wanted)[0], expected(wanted))


@pytest.mark.parametrize("room", [0, 30, HEADER_BYTES, 100, 150, 200, 300, 500])
def test_a_disk_that_fills_costs_the_cache_alone(tmp_path, monkeypatch, room):
    written = 0

    def write_all(file, data):
        nonlocal written
        taken = min(room - written, memoryview(data).nbytes)
        file.write(memoryview(data).cast("B")[:taken])
        written += taken
        if taken < memoryview(data).nbytes:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_all", write_all)
    monkeypatch.setattr("finetune.cache_dir.write_all", write_all)
    rows, computed = answer(tmp_path)
    np.testing.assert_array_equal(rows, expected())
    assert computed == KEYS  # once: what the disk took is read back
    assert list(tmp_path.glob("*/features/*")) == []


def _fill_up(folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    keys = [f"{number:032x}" for number in range(600)]
    rows, computed = answer(folder, keys, width=10)
    assert (rows == expected(keys, 10)).all()
    assert computed == keys


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_file_that_may_not_grow_costs_the_cache_alone(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_fill_up, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_disk_that_fails_altogether_costs_time_alone(tmp_path, monkeypatch):
    calls = 0

    def write_all(file, data):
        nonlocal calls
        calls += 1
        if calls == 2:  # the first rows came to the file, but not to the disk
            os.truncate(file.fileno(), HEADER_BYTES + 8)
            raise OSError(5, "Input/output error")
        file.write(data)

    monkeypatch.setattr(shards, "write_all", write_all)
    rows, computed = answer(tmp_path)
    np.testing.assert_array_equal(rows, expected())
    assert computed == KEYS * 2


def deny(path):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("call", ["mkdir", "scandir", "open", "lstat"])
def test_a_place_of_somebody_else_costs_time_alone(tmp_path, monkeypatch, call):
    answer(tmp_path)
    real = getattr(os, call)

    def denied(path, *rest, **options):
        inside = "finetune-cache" in os.fspath(path)
        return deny(path) if inside else real(path, *rest, **options)

    monkeypatch.setattr(os, call, denied)
    rows, _ = answer(tmp_path, [*KEYS, "f" * 8])
    np.testing.assert_array_equal(rows, expected([*KEYS, "f" * 8]))


def test_a_file_in_the_place_of_the_folder_costs_time_alone(tmp_path):
    (tmp_path / "finetune-cache").write_text("somebody else's")
    for _ in range(2):
        assert answer(tmp_path)[1] == KEYS
    assert (tmp_path / "finetune-cache").read_text() == "somebody else's"


def test_an_error_of_the_images_is_nobody_elses(tmp_path):
    def compute(missing):
        yield expected()[:2]
        raise FileNotFoundError("image.png")

    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        cached_or_computed(FeatureStore(tmp_path), "space", KEYS, compute)
    assert list(tmp_path.glob("*/features/*")) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, None])
def test_an_interrupted_write_leaves_nothing_behind(tmp_path, stop):
    def broken():
        yield np.zeros((2, 5), dtype=np.float32)
        if stop:
            raise stop

    store = FeatureStore(tmp_path)
    with pytest.raises(stop or ValueError):
        store.keep("space", ["a", "b", "c"], broken())
    assert store.find("space", ["a"]) == ([], {})
    assert list(tmp_path.glob("*/features/*")) == []


def test_the_store_forgets_what_was_not_used_for_longest(tmp_path):
    store = FeatureStore(tmp_path, max_bytes=9000)
    paths = {}
    for number, space in enumerate(["old", "used", "new"]):
        before = set(tmp_path.glob("*/features/*"))
        FeatureStore(tmp_path).keep(space, ["k"], iter([np.zeros((1, 1000), np.float32)]))
        (paths[space],) = set(tmp_path.glob("*/features/*")) - before
        os.utime(paths[space], (number, number))
    store.find("used", ["k"])
    store.keep("last", ["k"], iter([np.zeros((1, 1000), dtype=np.float32)]))
    assert {space for space, path in paths.items() if path.exists()} == {"used"}
    assert store.find("last", ["k"])[1]


def test_eviction_spares_a_users_folder_of_the_same_name(tmp_path):
    mine = tmp_path / "features" / "mine" / "embeddings.h5"
    mine.parent.mkdir(parents=True)
    with mine.open("wb") as file:
        file.truncate(9 * 2**30)
    left_over = mine.with_name(".old.npy")
    left_over.touch()
    os.utime(left_over, (0, 0))
    answer(tmp_path)
    FeatureStore(tmp_path, max_bytes=1).keep("last", ["k"], iter([np.zeros((1, 9), np.float32)]))
    assert mine.stat().st_size == 9 * 2**30
    assert left_over.exists()


def test_too_much_for_the_bound_stays_in_memory(tmp_path):
    store = FeatureStore(tmp_path, max_bytes=100)
    found = cached_or_computed(store, "space", KEYS, computing(KEYS, []))
    np.testing.assert_array_equal(found.tensor(), expected())
    assert list(tmp_path.iterdir()) == []


def _write(folder, number):
    keys = [f"{number}{row:02}" for row in range(20)] + ["777"]
    for turn in range(5):
        rows, _ = answer(folder, keys, space=f"space {turn}")
        assert (rows == expected(keys)).all()


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_processes_writing_at_once_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    keys = [f"{number}{row:02}" for number in range(3) for row in range(20)] + ["777"]
    assert answer(tmp_path, keys, space="space 0")[1] == []
