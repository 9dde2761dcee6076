import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from finetune.cache_dir import HEADER_BYTES, CachedFiles
from finetune.data.cache import CachedReader, MemoryReader, caching_reader, image_files
from finetune.data.dataset import ImageDataset
from finetune.data.decoding import ImageReader
from finetune.errors import ImageError
from finetune.spec.images import LabelledImage

Painter = Callable[..., Path]
READER = ImageReader(short_side=12)
GROUP = "0123456789abcdef"


@pytest.fixture
def paths(paint: Painter) -> list[Path]:
    return [paint(f"r/{number}.png", size=(24 + number, 16)) for number in range(8)]


def test_a_renamed_file_is_known_to_the_next_process_too(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CachedReader(READER, tmp_path / "c", GROUP)(paths[0])
    renamed = paths[0].rename(paths[0].with_name("renamed.png"))
    expected = CachedReader(READER, tmp_path / "c", GROUP)(renamed)

    def unread(path: Path) -> bytes:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(Path, "read_bytes", unread)
    assert torch.equal(CachedReader(READER, tmp_path / "c", GROUP)(renamed), expected)


DECODE = ImageReader.decode


def plain(path: Path) -> torch.Tensor:
    """Decoded without a cache, and without being counted."""
    return DECODE(READER, path.read_bytes(), name=str(path))


class Counting:
    """Counts what is really decoded in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[str] = []

        def decode(reader: ImageReader, content: bytes, *, name: str) -> torch.Tensor:
            self.decoded.append(Path(name).name)
            return DECODE(reader, content, name=name)

        monkeypatch.setattr(ImageReader, "decode", decode)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_a_second_reader_decodes_nothing_and_gives_the_same(
    paths: list[Path], tmp_path: Path, counting: Counting
) -> None:
    expected = [plain(path) for path in paths]
    for _ in range(2):  # the second one is another process's, as far as it can know
        reader = CachedReader(READER, tmp_path / "c", GROUP)
        for _ in range(2):
            actual = [reader(path) for path in paths]
            assert all(map(torch.equal, actual, expected))
    assert len(counting.decoded) == len(paths)


def test_a_change_in_place_stays_in_its_process(paths: list[Path], tmp_path: Path) -> None:
    reader = CachedReader(READER, tmp_path / "c", GROUP)
    reader(paths[0])
    reader(paths[0]).zero_()
    other = CachedReader(READER, tmp_path / "c", GROUP)
    assert torch.equal(other(paths[0]), plain(paths[0]))


def test_one_channel_images_are_kept_as_such(paths: list[Path], tmp_path: Path) -> None:
    grey = ImageReader(in_chans=1, short_side=12)
    for _ in range(2):
        assert torch.equal(CachedReader(grey, tmp_path / "c", GROUP)(paths[0]), grey(paths[0]))


def test_a_changed_file_is_decoded_anew_and_a_renamed_one_is_not(
    paths: list[Path], tmp_path: Path, counting: Counting
) -> None:
    reader = CachedReader(READER, tmp_path / "c", GROUP)
    old = reader(paths[0])
    renamed = paths[0].rename(paths[0].with_name("renamed.png"))
    assert torch.equal(reader(renamed), old)
    shutil.copy(paths[1], renamed)
    assert torch.equal(reader(renamed), plain(paths[1]))
    assert counting.decoded == ["0.png", "renamed.png"]


def fill(folder: Path, paths: list[Path], group: str = GROUP) -> None:
    reader = CachedReader(READER, folder, group)
    for path in paths:
        reader(path)


def test_processes_may_build_one_cache_at_once(
    paths: list[Path], tmp_path: Path, counting: Counting
) -> None:
    folder = tmp_path / "c"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(folder, paths)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    reader = CachedReader(READER, folder, GROUP)
    assert all(torch.equal(reader(path), plain(path)) for path in paths)
    assert counting.decoded == []


def test_workers_share_what_each_of_them_decoded(
    paths: list[Path], tmp_path: Path, counting: Counting
) -> None:
    images = [LabelledImage(path, 0) for path in paths]
    dataset = ImageDataset(images, torch.Tensor.float, CachedReader(READER, tmp_path / "c", GROUP))
    fill_one = CachedReader(READER, tmp_path / "c", GROUP)
    fill_one(paths[0])
    for _ in range(2):
        loader = DataLoader(dataset, batch_size=1, num_workers=2)
        actual = [images[0] for images, _ in loader]
        assert all(torch.equal(a, plain(p).float()) for a, p in zip(actual, paths, strict=True))
    decoded_here = len(counting.decoded)
    assert all(torch.equal(dataset[i][0], actual[i]) for i in range(len(paths)))
    assert len(counting.decoded) == decoded_here == 1


def test_a_process_that_stopped_while_writing_does_no_harm(
    paths: list[Path], tmp_path: Path, counting: Counting
) -> None:
    folder = tmp_path / "c"
    fill(folder, paths[:3])
    (index,) = folder.glob("*/images/*.index")
    (pixels,) = folder.glob("*/images/*.pixels")
    index.write_bytes(index.read_bytes() + b"half a record")
    with pixels.open("r+b") as file:  # the last image's bytes never reached the disk
        file.truncate(pixels.stat().st_size - 5)
    with pixels.open("r+b") as file:  # and the first one's did so as zeros
        file.seek(HEADER_BYTES)
        file.write(bytes(100))
    reader = CachedReader(READER, folder, GROUP)
    counting.decoded.clear()
    assert all(torch.equal(reader(path), plain(path)) for path in paths)
    assert counting.decoded == ["0.png", *[f"{n}.png" for n in range(2, 8)]]
    assert all(torch.equal(reader(path), plain(path)) for path in paths)
    assert len(counting.decoded) == 7


def test_least_recently_used_packs_go_first(paths: list[Path], tmp_path: Path) -> None:
    groups = {name: name[0] * 16 for name in ("a: old", "b: used", "c: new")}
    folder = image_files(tmp_path).folder
    for number, group in enumerate(groups.values()):
        fill(tmp_path, paths, group)
        for path in folder.glob(f"{group}*"):
            os.utime(path, ns=(number, number))
    fill(tmp_path, paths, groups["a: old"])  # reading makes it recent
    size = sum(path.stat().st_size for path in folder.glob("c*"))
    assert image_files(tmp_path).evict(2 * size + 1) == 2 * size
    assert {path.name[0] for path in folder.iterdir()} == {"a", "c"}


def test_the_limit_holds_and_costs_nothing_but_time(
    paths: list[Path], tmp_path: Path, counting: Counting
) -> None:
    reader = CachedReader(READER, tmp_path / "c", GROUP, limit_bytes=1500, pack_bytes=600)
    for _ in range(2):
        assert all(torch.equal(reader(path), plain(path)) for path in paths)
    assert sum(path.stat().st_size for path in tmp_path.glob("c/*/images/*.pixels")) < 1500 + 1300
    assert len(counting.decoded) > len(paths)


def test_an_unwritable_place_costs_nothing_but_time(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where the folder should be")
    reader = CachedReader(READER, tmp_path / "c", GROUP)
    assert all(torch.equal(reader(path), plain(path)) for path in paths)


def test_errors_stay_errors(tmp_path: Path, paths: list[Path]) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("<html>")
    reader = CachedReader(READER, tmp_path / "c", GROUP)
    for path in (bad, bad, tmp_path / "gone.jpg"):
        with pytest.raises(ImageError, match=path.name):
            reader(path)


def test_memory_keeps_images_up_to_its_limit(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def decode(path: Path) -> torch.Tensor:
        decoded.append(path)
        return torch.zeros(3, 10, 10, dtype=torch.uint8)

    reader = MemoryReader(decode, limit_bytes=1000)  # type: ignore[arg-type]
    for _ in range(3):
        for path in paths[:5]:
            reader(path)
    assert len(decoded) == 3 + 3 * 2


@pytest.mark.parametrize("kind", [CachedReader, MemoryReader])
def test_readers_are_sent_to_workers_without_their_images(
    kind: type, paths: list[Path], tmp_path: Path
) -> None:
    reader = kind(READER, tmp_path / "c", GROUP) if kind is CachedReader else kind(READER)
    for path in paths:
        reader(path)
    content = pickle.dumps(reader)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content)(paths[0]), plain(paths[0]))  # noqa: S301


def test_auto_takes_what_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(images: int, decode_seconds: float, mode: str = "auto") -> type:
        reader = caching_reader(
            ImageReader(short_side=256),
            tmp_path,
            mode=mode,  # type: ignore[arg-type]
            images=images,
            decode_seconds=decode_seconds,
            cache_dir=tmp_path / "not there yet",
        )
        return type(reader)

    monkeypatch.setattr(CachedFiles, "free_bytes", lambda self: 20 * 2**30)
    assert chosen(500, 1.0) is MemoryReader
    assert chosen(5000, 15.0) is CachedReader
    assert chosen(100_000, 300.0) is ImageReader
    assert chosen(500, 1.0, "off") is ImageReader
    assert chosen(500, 1.0, "disk") is CachedReader
    assert chosen(100_000, 300.0, "memory") is MemoryReader
    assert not (tmp_path / "not there yet").exists()


def test_decode_settings_have_caches_of_their_own(tmp_path: Path) -> None:
    groups = {
        caching_reader(  # type: ignore[union-attr]
            reader, tmp_path, mode="disk", images=1, decode_seconds=1, cache_dir=tmp_path
        ).group
        for reader in (READER, ImageReader(short_side=13), ImageReader(in_chans=1, short_side=12))
    }
    assert len(groups) == 3
