import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cache_dir import HEADER_BYTES
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.findings import Finding, write_findings
from finetune.data.folder import scan_folder
from finetune.data.health import check_folder
from finetune.data.inspection import Inspection, inspect_file, inspect_files
from finetune.data.outlier_checks import look_findings
from finetune.errors import ImageError, ImageFolderError

Painter = Callable[..., Path]


def check(root: Path, cache: Path, **options: object) -> dict[str, list[Finding]]:
    folder = scan_folder(root)
    inspections = inspect_files(
        [image.path for image in folder.images], root=root, perceptual=True, cache_dir=cache
    )
    kinds: dict[str, list[Finding]] = {}
    for finding in check_folder(folder, inspections, **options):  # type: ignore[arg-type]
        kinds.setdefault(finding.kind, []).append(finding)
    return kinds


def names(findings: list[Finding]) -> list[str]:
    return [finding.path.name for finding in findings]


def fingerprint(root: Path) -> dict[str, tuple[int, str]]:
    return {
        path.as_posix(): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [root, *root.rglob("*")]
    }


def write_awkward_folder(root: Path, paint: Painter) -> None:
    """The cases that break other loaders, one of each."""
    base = root.name
    for name in ("cat", "dog", "été garçon"):
        for number in range(6):
            paint(f"{base}/train/{name}/{number}.jpg", size=(64, 48))
            if name != "cat":
                paint(f"{base}/val/{name}/v{number}.jpg", size=(64, 48))
    paint(f"{base}/train/one/only.jpg")
    (root / "train/empty").mkdir()
    paint(f"{base}/train/.ipynb_checkpoints/0.jpg")
    (root / "train/cat/._1.jpg").write_bytes(b"\x00\x05\x16\x07mac")
    paint(f"{base}/train/cat/sub/nested.jpg")
    paint(f"{base}/train/dog/UP.JPG")
    for mode, name in [("RGBA", "a.png"), ("P", "p.gif"), ("CMYK", "c.jpg"), ("L", "l.tiff")]:
        paint(f"{base}/train/dog/{name}", mode)
    content = (root / "train/cat/0.jpg").read_bytes()
    (root / "train/cat/trunc.jpg").write_bytes(content[: len(content) // 2])
    (root / "train/cat/zero.jpg").touch()
    (root / "train/cat/html.jpg").write_text("<html>404</html>")
    paint(f"{base}/val/zebra/1.jpg")
    (root / "val/dog/leak.jpg").write_bytes((root / "train/dog/0.jpg").read_bytes())
    paint(f"{base}/train/root.jpg")


def test_the_awkward_folder_is_seen_through_and_stays_as_it_is(
    paint: Painter, tmp_path: Path
) -> None:
    root = tmp_path / "awkward"
    write_awkward_folder(root, paint)
    before = fingerprint(root)
    kinds = check(root, tmp_path / "cache")
    assert names(kinds["unreadable"]) == ["html.jpg", "trunc.jpg", "zero.jpg"]
    (leak,) = kinds["leak"]
    assert leak.path == root / "train/dog/0.jpg"
    assert "val/dog/leak.jpg" in leak.problem
    assert "'zebra'" in kinds["class_missing_from_train"][0].problem
    assert "'empty'" in kinds["empty_class"][0].problem
    assert "'one'" in kinds["one_image_class"][0].problem
    assert "'cat', 'one'" in kinds["class_not_evaluated"][0].problem
    assert sorted(names(kinds["unused"])) == ["._1.jpg", ".ipynb_checkpoints", "root.jpg"]
    errors = {kind for kind, found in kinds.items() if found[0].severity == "error"}
    assert errors == {"unreadable", "leak", "class_missing_from_train"}

    module = ImageFolderDataModule(root, cache_dir=tmp_path / "cache", on_bad_image="skip")
    with pytest.raises(ImageFolderError, match="'zebra' only in val"):
        module.setup("fit")
    (root / "val/zebra").rename(tmp_path / "zebra")
    before = {p: v for p, v in fingerprint(root).items() if "/val" not in p or p in before}
    with pytest.raises(ImageError, match=r"found 3 that are not, the first .*html\.jpg"):
        ImageFolderDataModule(root, cache_dir=tmp_path / "cache").setup("fit")
    module = ImageFolderDataModule(
        root, cache_dir=tmp_path / "cache", cache="disk", on_bad_image="skip", batch_size=64
    )
    module.setup("fit")
    assert names(module.bad_images) == ["html.jpg", "trunc.jpg", "zero.jpg"]
    images, labels = next(iter(module.train_dataloader()))
    used = {image.path for s in ("train", "val", "test") for image in module.images(s)}
    assert len(used) == 6 * 3 + 6 * 2 + 1 + 6 + 1, "an image is missing or too many"
    assert len(images) == len(labels) == len(module.images("train"))
    expected = Counter(
        {name: sum(i.label == n for i in module.images("train")) for n, name in
         enumerate(module.class_names)}
    )  # fmt: skip
    assert Counter(module.class_names[label] for label in labels.tolist()) == expected
    for image in (image for s in ("train", "val", "test") for image in module.images(s)):
        assert module.class_names[image.label] in image.path.parts
    assert fingerprint(root) == before


def test_a_placeholder_among_photographs_is_found_without_its_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:150, 0:200]
    for number in range(12):
        phase = rng.random((3, 1, 1)) * 6
        waves = 128 + 90 * np.sin(x / 30 + phase) * np.cos(y / 20 + phase)
        pixels = np.clip(waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)
        path = tmp_path / f"r/{'ab'[number % 2]}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    drawing = Image.new("RGB", (200, 150), "white")
    drawing.paste("red", (60, 40, 140, 50))
    drawing.paste("black", (60, 80, 140, 90))
    for name in ("b/7f3a.gif", "a/9c.png", "a/77.jpg"):
        drawing.save(tmp_path / "r" / name)
    Image.new("RGB", (50, 50), "green").save(tmp_path / "r/b/green.png")
    Image.fromarray(np.tile(pixels.transpose(1, 2, 0), (1, 9, 1))).save(tmp_path / "r/b/strip.png")
    kinds = check(tmp_path / "r", tmp_path / "cache")
    assert sorted(names(kinds["drawn"])) == ["77.jpg", "7f3a.gif", "9c.png"]
    assert names(kinds["one_colour"]) == ["green.png"]
    assert names(kinds["aspect"]) == ["strip.png"]
    assert not any(found[0].severity == "error" for found in kinds.values())


def test_drawings_among_drawings_are_nothing_special() -> None:
    drawings = [Inspection(Path(f"{n}.png"), colours=4, flatness=0.9) for n in range(9)]
    assert not [f for f in look_findings(drawings) if f.kind == "drawn"]


def test_duplicates_are_named_for_what_they_do(paint: Painter, tmp_path: Path) -> None:
    root = tmp_path / "r"
    for name in ("train/a", "train/b", "test/a", "test/b"):
        for number in range(6):
            paint(f"r/{name}/{name[:2]}{number}.png", size=(64, 64))
    copies = {"train/a/same.png": "train/a/tr0.png", "train/b/both.png": "train/a/tr1.png"}
    for copy, source in copies.items():
        (root / copy).write_bytes((root / source).read_bytes())
    with Image.open(root / "train/b/tr2.png") as image:
        image.save(root / "test/b/other_format.webp", quality=90)
    exact = check(root, tmp_path / "cache")
    assert {kind: names(exact[kind]) for kind in ("duplicate", "contradiction")} == {
        "duplicate": ["same.png"],
        "contradiction": ["tr1.png"],
    }
    assert exact["contradiction"][0].severity == "error"
    assert "leak" not in exact
    assert "near_leak" not in exact
    (leak,) = check(root, tmp_path / "cache", duplicates="near")["near_leak"]
    assert {leak.path.name, "other_format.webp"} == {"tr2.png", "other_format.webp"}
    assert leak.severity == "error"


def test_classes_that_differ_in_case_only_and_imbalance_are_said(
    paint: Painter, tmp_path: Path
) -> None:
    for number in range(30):
        paint(f"r/Cat/{number}.png")
    for name in ("cat", "dog"):
        for number in range(2):
            paint(f"r/{name}/{number}.png")
    kinds = check(tmp_path / "r", tmp_path / "cache")
    assert "'Cat', 'cat'" in kinds["similar_names"][0].problem
    assert "30 images of 'Cat', 2 of" in kinds["imbalance"][0].problem


def test_wrong_endings_and_turned_images_are_noted(paint: Painter, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    paint("r/a/turned.jpg", exif=exif)
    paint("r/b/x.png").rename(tmp_path / "r/b/really_png.jpg")
    kinds = check(tmp_path / "r", tmp_path / "cache")
    assert names(kinds["wrong_ending"]) == ["really_png.jpg"]
    assert kinds["turned"][0].problem.endswith(": 1")
    assert kinds["mixed_modes"][0].problem in ("1 JPEG RGB, 1 PNG RGB", "1 PNG RGB, 1 JPEG RGB")


def test_stacks_of_pages_are_a_warning_and_other_second_frames_are_not(
    paint: Painter, tmp_path: Path
) -> None:
    paths = [paint(f"r/{name}") for name in ("a.tif", "b.tif", "c.gif", "d.jpg")]
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "green", "blue")]
    for path in (paths[0], paths[2]):
        frames[0].save(path, save_all=True, append_images=frames[1:])
    frames[0].save(paths[3], format="MPO", save_all=True, append_images=frames[1:2])
    inspections = inspect_files(paths, root=tmp_path, remember=False)
    assert [each.pages for each in inspections] == [True, False, False, False]
    (found,) = [each for each in look_findings(inspections) if each.kind == "pages"]
    assert found.severity == "warning"
    assert found.problem.endswith("is used: 1, the first a.tif")


def test_unchanged_files_are_not_opened_again(
    paint: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.data import inspection

    opened: list[str] = []
    real = inspect_file

    def counted(path: Path, **options: object) -> Inspection:
        opened.append(path.name)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inspection, "inspect_file", counted)
    paths = [paint(f"r/a/{number}.png") for number in range(4)]

    def inspect(**options: object) -> list[Inspection]:
        opened.clear()
        return inspect_files(paths, root=tmp_path / "r", cache_dir=tmp_path / "c", **options)  # type: ignore[arg-type]

    first = inspect()
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png"]
    assert inspect() == first
    assert opened == []
    paint("r/a/2.png", size=(30, 30))
    assert inspect()[2].width == 30
    assert opened == ["2.png"]
    assert all(each.perceptual_hash for each in inspect(perceptual=True))
    assert len(opened) == 4
    (memory,) = (tmp_path / "c").glob("*/inspections/*")
    memory.write_text("{damaged")
    assert [each.content_hash for each in inspect()] == [each.content_hash for each in inspect()]
    inspect(remember=False)
    assert len(opened) == 4
    paths[0].unlink()
    assert inspect()[0].problem == "cannot be opened: No such file or directory"
    (memory,) = set((tmp_path / "c").glob("*/inspections/*")) - {memory}  # what is not ours stays
    lines = memory.read_bytes()[HEADER_BYTES:].splitlines()
    noted = {Path(json.loads(line[9:])[0]).name for line in lines}
    assert noted == {"1.png", "2.png", "3.png"}


def test_the_pixel_limit_is_a_problem_of_the_file(paint: Painter) -> None:
    path = paint("a.png", size=(100, 50))
    assert inspect_file(path, max_pixels=5000).problem is None
    assert "at most 4,999 pixels, found 100 x 50" in str(
        inspect_file(path, max_pixels=4999).problem
    )


def test_findings_are_written_for_spreadsheets(tmp_path: Path) -> None:
    findings = [Finding(Path("a, b.jpg"), "unreadable", "error", 'says "no"', "remove it")]
    write_findings(tmp_path / "bad_images.csv", findings)
    with (tmp_path / "bad_images.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"path": "a, b.jpg", "kind": "unreadable", "severity": "error",
             "problem": 'says "no"', "remedy": "remove it"}
        ]  # fmt: skip


def test_checking_does_without_the_heavy_libraries() -> None:
    code = (
        "import sys, finetune.data.health, finetune.data.splits, finetune.data.manifest\n"
        "print([m for m in ('lightning', 'torchvision', 'timm', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_what_was_opened_before_a_stop_is_remembered(
    paint: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.data import inspection

    paths = [paint(f"r/a/{number}.png") for number in range(8)]
    opened: list[Path] = []
    real = inspect_file

    def stopping(path: Path, **options: object) -> Inspection:
        opened.append(path)
        if stop and path == paths[5]:
            raise KeyboardInterrupt
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inspection, "inspect_file", stopping)
    options = {"root": tmp_path / "r", "cache_dir": tmp_path / "cache"}
    stop = True
    with pytest.raises(KeyboardInterrupt):
        inspect_files(paths, **options)  # type: ignore[arg-type]
    stop = False
    opened.clear()
    inspected = inspect_files(paths, **options)  # type: ignore[arg-type]
    assert sorted(opened) == paths[5:]
    assert [each.path for each in inspected] == paths


@pytest.mark.parametrize(("highest", "said"), [(4095, True), (65535, False), (0, False)])
def test_twelve_bits_in_a_16_bit_file_are_a_warning(
    highest: int, said: bool, tmp_path: Path
) -> None:
    for number in range(3):
        path = tmp_path / f"r/a/{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, highest + 1, (40, 40), dtype=np.uint16)).save(path)
    (tmp_path / "r/b").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "r/b/black.png")
    found = check(tmp_path / "r", tmp_path / "cache").get("few_bits", [])
    assert [finding.severity for finding in found] == ["warning"] * said
    assert all("range: 3, the first 0.tif" in finding.problem for finding in found)


def test_absolute_and_relative_paths_can_be_checked_together(
    paint: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.data.manifest import read_manifest

    paint("r/1.png")
    other = paint("r/2.jpg")
    (tmp_path / "l.csv").write_text(f"path,label\nr/1.png,a\n{other},b\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    folder = read_manifest("l.csv", "r")
    inspections = [inspect_file(image.path) for image in folder.images]
    kinds = [finding.kind for finding in check_folder(folder, inspections)]
    assert "mixed_modes" in kinds
