import os
import struct
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.cache_dir import HEADER_BYTES, CachedFiles
from finetune.data.image_shards import RECORD_BYTES, WHERE, ShardIndex, ShardWriter

KEYS = [(bytes([number] * 16), bytes([100 + number] * 16)) for number in range(3)]
GROUP = "0123456789abcdef"
FIELDS = struct.Struct(WHERE.format + "I")


def image(number, channels=3):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(256, (channels, 6, 7), dtype=torch.uint8, generator=generator)


@pytest.fixture
def files(tmp_path):
    return CachedFiles(tmp_path, "images", 1)


@pytest.fixture
def pack(files):
    writer = ShardWriter(files, GROUP)
    for number, keys in enumerate(KEYS):
        writer.append(*keys, image(number))
    return writer.path


def shown(files):
    """Which of the three images a new process is given; each is the right one."""
    index = ShardIndex(files, GROUP, 3)
    found = [index.read(identity) for identity, _ in KEYS]
    for number, pixels in enumerate(found):
        assert pixels is None or torch.equal(pixels, image(number))
    return [pixels is not None for pixels in found]


@pytest.mark.parametrize("channels", [1, 3])
def test_another_index_reads_what_a_writer_wrote(channels, files):
    index = ShardIndex(files, GROUP, channels)
    assert index.read(KEYS[0][0]) is None
    writer = ShardWriter(files, GROUP)
    writer.append(*KEYS[0], image(0, channels))
    assert torch.equal(index.read(KEYS[0][0]), image(0, channels))
    ShardWriter(files, GROUP).append(*KEYS[1], image(1, channels))  # another process's, later
    assert torch.equal(index.read(KEYS[1][0]), image(1, channels))
    assert ShardIndex(files, GROUP[::-1], channels).read(KEYS[0][0]) is None
    assert ShardIndex(files, GROUP, 4 - channels).read(KEYS[0][0]) is None


def test_an_image_is_found_by_its_content_under_a_new_name(files, pack):
    index = ShardIndex(files, GROUP, 3)
    new_name = b"n" * 16
    assert index.read(new_name) is None
    assert torch.equal(index.read_content(KEYS[2][1]), image(2))
    writer = ShardWriter(files, GROUP)
    writer.append(new_name, KEYS[2][1], None)
    assert writer.size == HEADER_BYTES
    for each in (index, ShardIndex(files, GROUP, 3)):
        assert torch.equal(each.read(new_name), image(2))


def test_half_a_record_is_no_image_yet(files, pack):
    os.truncate(pack.with_suffix(".index"), HEADER_BYTES + 2 * RECORD_BYTES + 10)
    assert shown(files) == [True, True, False]


@pytest.mark.parametrize("ending", [".index", ".pixels"])
@given(data=st.data())
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_changed_byte_changes_an_image(files, pack, ending, data):
    path = pack.with_suffix(ending)
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(changed)
    found = shown(files)
    path.write_bytes(content)
    assert sum(found) == (0 if place < HEADER_BYTES else 2)


def sealed(**changed):
    """The first image's record with other values and a right checksum."""
    names = ("identity", "content", "offset", "height", "width", "channels", "checksum")

    def change(path):
        path = path.with_suffix(".index")
        content = path.read_bytes()
        end = HEADER_BYTES + FIELDS.size
        values = dict(zip(names, FIELDS.unpack(content[HEADER_BYTES:end]), strict=True))
        record = FIELDS.pack(*(values | changed).values())
        record += struct.pack("<I", zlib.crc32(record))
        path.write_bytes(content[:HEADER_BYTES] + record + content[end + 4 :])

    return change


def replaced_by(ending, make):
    def change(path):
        path.with_suffix(ending).unlink()
        make(path.with_suffix(ending))

    return change


def exchanged(path):
    content = path.read_bytes()
    size = 3 * 6 * 7
    one, two = content[HEADER_BYTES:][:size], content[HEADER_BYTES + size :][:size]
    path.write_bytes(content[:HEADER_BYTES] + two + one + content[HEADER_BYTES + 2 * size :])


FIRST_GONE, ALL_GONE = [False, True, True], [False, False, False]
DAMAGES = {
    "height 0": (sealed(height=0), FIRST_GONE),
    "width 0": (sealed(width=0), FIRST_GONE),
    "huge": (sealed(height=2**32 - 1, width=2**32 - 1), FIRST_GONE),
    "far away": (sealed(offset=2**63), FIRST_GONE),
    "in the header": (sealed(offset=0), FIRST_GONE),
    "turned": (sealed(height=7, width=6), FIRST_GONE),
    "grey": (sealed(channels=1), FIRST_GONE),
    "another's pixels": (sealed(offset=HEADER_BYTES + 3 * 6 * 7), FIRST_GONE),
    "exchanged pixels": (exchanged, [False, False, True]),
    "no pixels": (replaced_by(".pixels", lambda path: None), ALL_GONE),
    "empty pixels": (lambda path: path.write_bytes(b""), ALL_GONE),
    "zeros": (lambda path: path.write_bytes(bytes(10_000)), ALL_GONE),
    "fifo of pixels": (replaced_by(".pixels", os.mkfifo), ALL_GONE),
    "fifo of records": (replaced_by(".index", os.mkfifo), ALL_GONE),
    "link": (replaced_by(".pixels", lambda path: path.symlink_to("/dev/zero")), ALL_GONE),
    "folder": (replaced_by(".index", lambda path: path.mkdir()), ALL_GONE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_odd_packs_show_no_odd_image(files, pack, damage):
    change, expected = DAMAGES[damage]
    change(pack)
    assert shown(files) == expected


def test_of_two_copies_the_whole_one_is_taken(files, pack):
    ShardWriter(files, GROUP).append(*KEYS[0], image(0))
    for path in files.folder.glob("*.pixels"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert shown(files)[0]
        path.write_bytes(content)
