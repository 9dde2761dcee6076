import io
import pickle
import re
import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

import finetune
from finetune.data.decoding import (
    ImageReader,
    open_image,
    orientation_of,
    shrink,
    shrunk_size,
)
from finetune.data.decoding_memory import MAX_DECODING_MB, _DecodingMemory, decoding_bytes
from finetune.data.image_formats import FORMATS
from finetune.errors import ImageError, UsageError
from finetune.spec.images import content_id, file_id

Painter = Callable[..., Path]


def tiff_with_tags() -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(content, "TIFF", compression="tiff_lzw", description="d" * 40, software="s" * 40)
    return content.getvalue()


TIFF_WITH_TAGS = tiff_with_tags()


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth colours with an arrow-like asymmetry, so that codecs lose little and turns show."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    red, green = 255 * x / width, 255 * y / height
    blue = 128 + 100 * np.sin(x / 9) * np.cos(y / 7)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode_bytes(content: bytes, *, name: str, **settings: int) -> Tensor:
    return ImageReader(**settings).decode(content, name=name)  # type: ignore[arg-type]


def decoded(image: Image.Image, format: str = "PNG", **options: object) -> Tensor:
    in_chans = options.pop("in_chans", 3)
    return decode_bytes(encoded(image, format, **options), name="x", in_chans=in_chans)  # type: ignore[arg-type]


def reference(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("format", "options", "loss"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 8),
        ("JPEG", {"quality": 98, "subsampling": 0}, 6),
        ("JPEG", {"quality": 98, "progressive": True}, 8),
    ],
)
def test_one_image_gives_one_tensor_in_every_format(
    format: str, options: dict[str, object], loss: int
) -> None:
    image = photograph()
    difference = (decoded(image, format, **options).int() - reference(image).int()).abs()
    assert difference.float().mean() <= loss / 4
    assert difference.max() <= 5 * loss


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photograph(), format, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = reference(ImageOps.exif_transpose(image))
    assert torch.equal(decode_bytes(content, name="x"), expected)
    # The reduced and the greyscale paths turn it, too.
    assert decode_bytes(content, name="x", short_side=8).shape[1:] == (
        (8, 12) if orientation < 5 else (12, 8)
    )
    assert decode_bytes(content, name="x", in_chans=1).shape[1:] == expected.shape[1:]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for format in ("PNG", "TIFF"):
        pixels = decoded(Image.fromarray(ramp), format)
        assert torch.equal(pixels[0, 0], torch.arange(256, dtype=torch.uint8))
        assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-3.0, 1.0, 5.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 50_000_000]], np.int32), [0, 0, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[7.0, 7.0, 7.0]], np.float32), [0, 0, 0]),
        (np.array([[0.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
    ],
)
def test_floats_and_long_integers_are_scaled(values: np.ndarray, expected: list[int]) -> None:
    assert decoded(Image.fromarray(values), "TIFF")[0, 0].tolist() == expected


@pytest.mark.parametrize("nan", [b"\0\0\xa0\x7f", b"\0\0\xc0\x7f"], ids=["signalling", "quiet"])
def test_no_number_is_black(nan: bytes) -> None:
    values = np.frombuffer(nan + np.ones(3, np.float32).tobytes(), np.float32).reshape(2, 2)
    assert decoded(Image.fromarray(values), "TIFF").flatten().tolist() == [0, 255, 255, 255] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        pixels = decoded(image, transparency=0)
    else:
        pixels = decoded(image.convert(mode))
    assert pixels[:, 0].tolist() == [[255, 0]] * 3
    half = Image.new("RGBA", (1, 1), (200, 0, 0, 128))
    assert decoded(half)[:, 0, 0].tolist() == pytest.approx([227, 127, 127], abs=1)


def test_one_bit_palette_and_grey_images_keep_their_colours() -> None:
    dots = Image.fromarray(np.array([[True, False]])).convert("1")
    assert decoded(dots)[:, 0].tolist() == [[255, 0]] * 3
    palette = photograph().convert("P", palette=Image.Palette.ADAPTIVE)
    assert torch.equal(decoded(palette), reference(palette))
    grey = photograph().convert("L")
    assert torch.equal(decoded(grey, in_chans=1)[0], torch.from_numpy(np.array(grey)))
    assert torch.equal(decoded(grey), decoded(grey, in_chans=1).expand(3, -1, -1))


def test_cmyk_and_ycck_look_like_the_original() -> None:
    image = photograph()
    # Pillow writes CMYK JPEG files with Adobe's inverted values, as the usual programs do.
    for format in ("JPEG", "TIFF"):
        difference = decoded(image.convert("CMYK"), format).float() - reference(image).float()
        assert difference.abs().mean() < 3
    ycck = as_ycck(encoded(image.convert("CMYK"), "JPEG", quality=98, subsampling=0))
    with Image.open(io.BytesIO(ycck)) as opened:
        expected = reference(opened)
    assert torch.equal(decode_bytes(ycck, name="x"), expected)


def as_ycck(content: bytes) -> bytes:
    """Declare a CMYK JPEG's colour transform to be YCCK in its Adobe marker."""
    start = content.index(b"Adobe")
    changed = bytearray(content)
    changed[start + 11] = 2
    return bytes(changed)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert decode_bytes(content, name="x")[:, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("switch", [False, True])
def test_truncated_files_are_refused_whatever_pillows_switch_says(
    format: str, switch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(photograph(256, 256), format)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", switch)
    for short_side in (None, 16):
        with pytest.raises(ImageError, match="x"):
            decode_bytes(content[: len(content) * 2 // 3], name="x", short_side=short_side)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is switch


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"\x00\x05\x16\x07mac", "no known image format"),
    ],
)
def test_files_that_are_no_images_are_named_for_what_they_are(
    content: bytes, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=found) as caught:
        ImageReader()(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: No such file"):
        ImageReader()(tmp_path / "gone.jpg")


def test_the_pixel_limit_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(photograph(100, 80), "PNG")
    with pytest.raises(ImageError, match=r"at most 7,999 pixels, found 100 x 80 .* max_pixels"):
        decode_bytes(content, name="x", max_pixels=7999)
    # Pillow's own limit neither warns nor refuses what ours allows.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_bytes(content, name="x", max_pixels=8000).shape == (3, 80, 100)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_content_decides_not_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(photograph(), "PNG"))
    assert torch.equal(ImageReader()(path), reference(photograph()))


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 100), (1000, 50)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_short_side_is_exact_and_smaller_images_stay(size: tuple[int, int], format: str) -> None:
    content = encoded(photograph(*size), format)
    pixels = decode_bytes(content, name="x", short_side=64)
    assert min(pixels.shape[1:]) == min(64, *size)
    width, height = size
    assert pixels.shape[2] / pixels.shape[1] == pytest.approx(width / height, rel=0.02)


def test_shrinking_agrees_with_torchvision_in_both_layouts() -> None:
    planes = torch.from_numpy(np.array(photograph(300, 200))).permute(2, 0, 1)
    expected = functional.resize(
        planes.contiguous(), [64, 96], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    for pixels in (planes, planes.contiguous()):
        assert torch.equal(shrink(pixels, 64), expected)
    # As laid out when decoded, so that the cache's and the transforms' fast paths hold.
    assert shrink(planes, 64).stride() == (1, 96 * 3, 3)


def test_reduced_decoding_looks_like_decoding_and_shrinking() -> None:
    content = encoded(photograph(2000, 1500), "JPEG", quality=95)
    reduced = decode_bytes(content, name="x", short_side=128)
    full = shrink(decode_bytes(content, name="x"), 128)
    assert reduced.shape == full.shape
    assert (reduced.int() - full.int()).abs().float().mean() < 0.5


def test_long_thin_images_keep_a_pixel() -> None:
    assert shrunk_size((1000, 2), 1) == (500, 1)
    assert shrunk_size((3, 5), 3) == (3, 5)


def test_readers_can_be_sent_to_workers() -> None:
    reader = ImageReader(in_chans=1, short_side=32)
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301


def test_equal_files_have_equal_hashes(tmp_path: Path, paint: Painter) -> None:
    one = paint("one.png")
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    assert file_id(one) == file_id(copy) == content_id(one.read_bytes())
    assert file_id(one) != file_id(paint("two.png"))
    assert len(file_id(one)) == 32


def test_threads_decode_side_by_side() -> None:
    content = encoded(photograph(), "PNG")
    expected = reference(photograph())
    failures: list[int] = []

    def work() -> None:
        failures.extend(
            n for n in range(20) if not torch.equal(decode_bytes(content, name="x"), expected)
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_only_one_or_three_channels() -> None:
    with pytest.raises(UsageError, match="in_chans"):
        decode_bytes(encoded(photograph(), "PNG"), name="x", in_chans=4)


def odd_exif(orientation: int) -> bytes:
    """An orientation beside a resolution of -72/0, as SRATIONAL: no valid EXIF as a whole."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack(">HHII", 0x011A, 10, 1, 38)
    directory = struct.pack(">H", 2) + entries + b"\0\0\0\0" + struct.pack(">ii", -72, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + directory


@pytest.mark.parametrize("orientation", range(1, 9))
def test_nothing_but_the_orientation_of_exif_decides(orientation: int) -> None:
    good = Image.Exif()
    good[0x0112] = orientation
    expected = decoded(photograph(), "JPEG", exif=good)
    assert torch.equal(decoded(photograph(), "JPEG", exif=odd_exif(orientation)), expected)


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(min_size=8, max_size=80), start=st.integers(6, 60))
def test_no_exif_bytes_make_a_good_image_a_damaged_one(noise: bytes, start: int) -> None:
    exif = bytearray(odd_exif(1))
    exif[start : start + len(noise)] = noise
    pixels = decoded(photograph(), "JPEG", exif=bytes(exif))
    assert sorted(pixels.shape) == [3, 64, 96]


@pytest.mark.filterwarnings("ignore:.*image format is deprecated")
def test_formats_are_a_closed_list() -> None:
    """Whatever else Pillow can write is refused before a decoder of it runs."""
    Image.init()
    for name in sorted(Image.SAVE.keys() - {*FORMATS, "DIB"}):
        image = photograph(64, 64)
        if name in ("BLP", "PALM", "XBM", "MSP"):
            image = image.convert("1" if name in ("XBM", "MSP") else "P")
        try:
            content = encoded(image, name)
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue  # formats that only some builds, modes or plugins write
        with pytest.raises(ImageError):
            decode_bytes(content, name=f"{name}.jpg")


def test_files_are_opened_by_the_bounded_opener_alone() -> None:
    """Pillow's own ``open`` tries every format and knows no limit; these two open what is ours."""
    package = Path(finetune.__file__).parent
    ours = {"data/decoding.py", "data/sample.py", "reporting/style.py"}
    opening = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\bImage\.open\(", path.read_text(encoding="utf-8"))
    }
    assert opening == ours


def test_postscript_named_jpg_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "program.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 72\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ImageError, match="PostScript"):
        ImageReader()(path)
    assert not started.exists()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "L"])
def test_memory_is_bounded_by_the_header(mode: str) -> None:
    """A few kilobytes that claim more than a gibibyte are refused before anything is decoded."""
    small = Image.new(mode, (8, 8))
    content = bytearray(encoded(small, "PNG"))
    width, height = 16_000, 11_000  # fewer pixels than max_pixels
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"MiB|damaged"):
        decode_bytes(bytes(content), name="bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    with open_image(bytes(content), name="bomb.png") as image:
        assert decoding_bytes(image) > MAX_DECODING_MB * 2**20


def test_threads_that_decode_share_the_memory() -> None:
    """Ten images of 40 % of it are never decoded three at a time."""
    memory = _DecodingMemory()
    inside, most, lock = 0, 0, threading.Lock()

    def decode(_: int) -> None:
        nonlocal inside, most
        with memory.taken(400, 1000):
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(50)))
    assert most <= 2


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_reading_the_orientation_decodes_nothing(format: str) -> None:
    with open_image(encoded(photograph(), format), name="x") as image:
        assert orientation_of(image) == 1
        loaded = []
        real = type(image).load
        image.load = lambda: (loaded.append(1), real(image))[1]  # type: ignore[method-assign]
        assert orientation_of(image) == 1
        assert not loaded


@pytest.mark.parametrize("odd", [0, 128, 255])
def test_odd_tags_of_a_tiff_are_told_to_nobody(odd: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for at in range(len(TIFF_WITH_TAGS) - 240, len(TIFF_WITH_TAGS)):  # they stand at the end
            content = bytearray(TIFF_WITH_TAGS)
            content[at] = odd
            with suppress(ImageError):
                decode_bytes(bytes(content), name="tags.tif")
    assert [str(each.message) for each in told] == []
