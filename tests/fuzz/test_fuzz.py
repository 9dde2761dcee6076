"""Files that were changed at random, through the verbs: an answer or one clear line, always."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from finetune.documents import yaml_of
from finetune.spec.run_files import MEMBERS

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is bounded as Linux does"
)


def encoded(mode: str, format: str, **options: Any) -> bytes:
    y, x = np.mgrid[0:40, 0:48]
    pixels = np.stack([5 * x, 6 * y, 2 * (x + y)], -1).astype(np.uint8)
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image.convert(mode).save(content, format, **options)
    return content.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
ONES = [
    ("RGB", "JPEG", {}),
    ("CMYK", "JPEG", {"progressive": True}),
    (
        "L",
        "JPEG",
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    ),
    ("RGB", "PNG", {}),
    ("P", "PNG", {"transparency": 3}),
    ("LA", "PNG", {}),
    ("I;16", "PNG", {}),
    ("RGBA", "WEBP", {}),
    ("RGB", "WEBP", {"lossless": True}),
    ("1", "BMP", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ("1", "TIFF", {"compression": "group4"}),
    ("RGB", "TIFF", {"compression": "jpeg"}),
    ("F", "TIFF", {}),
    ("P", "GIF", {}),
    ("RGB", "PPM", {}),
    ("RGB", "AVIF", {}),
]


def test_changed_images(fuzzing: Any, run: Path, tmp_path: Path) -> None:
    """Many at once, as a folder of images; then some one by one."""
    best = run / "checkpoints" / "best.ckpt"
    for kind, (mode, format, options) in enumerate(ONES):
        folder = tmp_path / "images" / f"{kind}-{format}"
        folder.mkdir(parents=True)
        (folder / "whole.jpg").write_bytes(encoded(mode, format, **options))
        for number, content in enumerate(fuzzing.damaged(encoded(mode, format, **options), 12)):
            (folder / f"{number}.jpg").write_bytes(content)
    root = tmp_path / "images"
    long = 20 * fuzzing.times  # seconds for all of them
    fuzzing.call("check", root, "--cache-dir=c", seconds=long)
    fuzzing.call("check", root, "--duplicates=near", "--cache-dir=d", "--json", seconds=long)
    answer = ["predict", best, root, "--on-bad-image=skip", "--output=p.csv"]
    assert fuzzing.call(*answer, seconds=long) == 0
    for path in fuzzing.random.sample(sorted(root.rglob("*.jpg")), 20 * fuzzing.times):
        fuzzing.call("predict", best, path, about=path)
    data = (f"--data.root={root}", "--data.on_bad_image=skip", "--data.cache_dir=e")
    fit = ["fit", f"--config={run / 'config.yaml'}", "--runs=runs", *data]
    assert fuzzing.call(*fit, seconds=long) == 0


def readers_of(checkpoint: Path, images: Path) -> list[list[str | Path]]:
    """Calls of every verb that takes a checkpoint."""
    image = next(images.rglob("*.png"))
    data = f"--data.root={images}"
    return [
        ["predict", checkpoint, image],
        ["inspect", checkpoint],
        ["explain", checkpoint, image, "--output=x.png"],
        ["export", checkpoint, "--format=safetensors", "--output=exported"],
        ["ensemble", checkpoint, checkpoint, "--output=e.ckpt"],
        ["average", checkpoint, checkpoint, "--output=a.ckpt"],
        ["calibrate", checkpoint, data, "--output=c.ckpt"],
        ["validate", f"--ckpt_path={checkpoint}", data],
    ]


def test_changed_checkpoints(fuzzing: Any, run: Path, colour_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    good = (run / "checkpoints" / "best.ckpt").read_bytes()
    path.write_bytes(good)
    readers = readers_of(path, colour_folder)
    assert [fuzzing.call(*each) for each in readers] == [0] * len(readers)
    for content in fuzzing.damaged(good, 40):
        path.write_bytes(content)
        fuzzing.call(*fuzzing.random.choice(readers))
    whole = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    whole["finetune"].pop("checksums")
    for at, odd, content in fuzzing.replaced(whole, 80):
        torch.save(content, path)
        call = fuzzing.random.choice(readers)
        fuzzing.call(*call, about=(at, odd, call))


def test_changed_manifests(fuzzing: Any, run: Path, colour_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    assert fuzzing.call("split", colour_folder, f"--output={path}") == 0
    good = path.read_bytes()
    data = (f"--data.root={colour_folder}", f"--data.manifest={path}")
    for content in fuzzing.damaged(good, 40):
        path.write_bytes(content)
        fuzzing.call("check", colour_folder, f"--manifest={path}")
        if fuzzing.random.random() < 0.2:
            fuzzing.call("fit", f"--config={run / 'config.yaml'}", "--runs=runs", *data)
            fuzzing.call("validate", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *data)


def test_odd_settings(fuzzing: Any, run: Path, tmp_path: Path) -> None:
    """Each key of a run's configuration by each odd value; what is taken is fitted."""
    path = tmp_path / "config.yaml"
    good = yaml.safe_load((run / "config.yaml").read_text())
    for at, odd, content in fuzzing.replaced(good, 60):
        path.write_text(yaml_of(content))
        fuzzing.call("fit", f"--config={path}", "--runs=runs", "--time-limit=5s", about=(at, odd))
    text = (run / "config.yaml").read_bytes()
    for content in fuzzing.damaged(text, 20):
        path.write_bytes(content)
        fuzzing.call("fit", f"--config={path}", "--runs=runs", "--time-limit=5s", about=content)


def test_changed_run_folders(fuzzing: Any, run: Path, tmp_path: Path) -> None:
    """What a stranger's run folder says of itself, for the verbs that read one."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    tracking = {"id": "a", "project": "b", "entity": None, "mode": "offline"}
    members = {"members": {"seed-0": ["--seed_everything=0"]}, "shared": ["--data.root=x"]}
    goods = {
        "metrics.json": json.loads((run / "metrics.json").read_text()),
        "tracking.json": tracking,
        "members.json": members,
    }
    for name, good in goods.items():
        changed = [json.dumps(content).encode() for _, _, content in fuzzing.replaced(good, 10)]
        for content in (*changed, *fuzzing.damaged(json.dumps(good).encode(), 6)):
            (own / name).write_bytes(content)
            fuzzing.call("compare", own, run, about=(name, content))
            if name != "members.json" or not taken(content):  # else it starts fits
                fuzzing.call("fit", f"--resume={own}", about=(name, content))
        (own / name).unlink()
        if name == "metrics.json":
            shutil.copy(run / name, own / name)


def test_changed_cache_files(fuzzing: Any, run: Path, colour_folder: Path, tmp_path: Path) -> None:
    """Images, features and what was found out of files: never an answer that is another."""
    cache = tmp_path / "cache"
    call = ["fit", f"--config={run / 'config.yaml'}", f"--data.cache_dir={cache}"]
    call += ["--data.cache=disk", "--runs=runs"]
    assert fuzzing.call(*call) == 0
    expected = figures(Path("runs/run-1"))
    kinds = {path.suffix for path in cache.rglob("*.*") if path.is_file()}
    assert len(kinds) >= 4, kinds
    good = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    for path in {path.suffix: path for path in good}.values():  # one of a kind
        for changed in fuzzing.damaged(good[path], 1):
            for each in cache.rglob("*.*"):
                if each.is_file() and each not in good:
                    each.unlink()
            for each, whole in good.items():
                each.write_bytes(changed if each == path else whole)
            assert fuzzing.call(*call, about=path) == 0
            newest = max(Path("runs").glob("run-*"), key=lambda run: int(run.name[4:]))
            assert figures(newest) == expected, path


def figures(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())["val"]


def taken(content: bytes) -> bool:
    try:
        MEMBERS(json.loads(content))
    except ValueError:
        return False
    return True
