import pytest
import torch

from finetune.data.packs import RECORD, PackIndex, PackWriter

KEYS = [(bytes([number] * 16), bytes([100 + number] * 16)) for number in range(3)]


def picture(number, channels=3):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(
        256, (channels, 5 + number, 7), dtype=torch.uint8, generator=generator
    ).contiguous()


@pytest.fixture
def folder(tmp_path):
    writer = PackWriter(tmp_path / "packs")
    for number, keys in enumerate(KEYS):
        writer.append(*keys, picture(number))
    return tmp_path / "packs"


@pytest.mark.parametrize("channels", [1, 3])
def test_another_index_reads_what_a_writer_wrote(channels, tmp_path):
    index = PackIndex(tmp_path, channels)
    assert index.read(KEYS[0][0]) is None
    writer = PackWriter(tmp_path)
    writer.append(*KEYS[0], picture(0, channels))
    assert torch.equal(index.read(KEYS[0][0]), picture(0, channels))
    PackWriter(tmp_path).append(*KEYS[1], picture(1, channels))  # another process's pack, later
    assert torch.equal(index.read(KEYS[1][0]), picture(1, channels))


def test_a_picture_is_found_by_its_content_under_a_new_name(folder):
    index = PackIndex(folder, 3)
    index.read(KEYS[0][0])
    new_name = b"n" * 16
    assert index.read(new_name) is None
    assert torch.equal(index.read_content(new_name, KEYS[2][1]), picture(2))
    assert torch.equal(index.read(new_name), picture(2))


def test_half_a_record_is_no_picture_yet(folder):
    (path,) = folder.glob("*.index")
    path.write_bytes(path.read_bytes()[: 2 * RECORD.size + 10])
    index = PackIndex(folder, 3)
    assert torch.equal(index.read(KEYS[1][0]), picture(1))
    assert index.read(KEYS[2][0]) is None


def test_pixels_that_never_reached_the_disk_are_not_shown(folder):
    (path,) = folder.glob("*.pixels")
    content = path.read_bytes()
    path.write_bytes(bytes(picture(0).numel()) + content[picture(0).numel() :])
    index = PackIndex(folder, 3)
    assert index.read(KEYS[0][0]) is None
    assert index.read_content(KEYS[0][0], KEYS[0][1]) is None
    assert torch.equal(index.read(KEYS[1][0]), picture(1))
