"""Whatever happens to a folder after a fit: no image that trained is ever held out again."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.folder import SPLITS
from finetune.errors import ManifestError
from finetune.spec.images import file_id
from finetune.spec.splits import SplitRecord

CLASSES = ("ant", "bee")


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(root: Path, images: int = 10) -> Path:
    for label, name in enumerate(CLASSES):
        for number in range(images):
            paint(root / name / f"{number}.png", 1000 * label + number)
    return root


def module(root: Path, **settings: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(root, num_workers=0, cache="off", **settings)  # type: ignore[arg-type]


def ids(data: ImageFolderDataModule, *splits: str) -> set[str]:
    return {image.id for split in splits for image in data.images(split)}  # type: ignore[arg-type]


def follow(record: SplitRecord, root: Path, **settings: object) -> ImageFolderDataModule:
    """As a verb would in another process: from what the checkpoint keeps."""
    entry = {"data": record.settings, "split": record.plain}
    dealing = {name: value for name, value in record.dealing.items() if name != "manifest"}
    data = module(root, **{**dealing, **settings})
    data.follow(SplitRecord.from_entry(entry))
    return data


def change(root: Path, rng: random.Random) -> None:
    """One thing that people do to their images."""
    files = sorted(root.rglob("*.png"))
    one, other = rng.sample(files, 2)
    match rng.randrange(7):
        case 0:  # grow
            for _ in range(rng.randrange(1, 9)):
                name = rng.choice(CLASSES)
                paint(root / name / f"{rng.random()}.png", rng.randrange(10**6, 10**9))
        case 1:  # rename
            one.rename(one.with_name(f"{rng.random()}.png"))
        case 2:  # move into a deeper folder
            (one.parent / "deep").mkdir(exist_ok=True)
            one.rename(one.parent / "deep" / f"{rng.random()}.png")
        case 3:  # duplicate, perhaps with another label
            shutil.copy(one, root / rng.choice(CLASSES) / f"{rng.random()}.png")
        case 4:  # save again: the same image to the eye, other bytes
            with Image.open(one) as image:
                image.load()
            image.save(one, compress_level=1, pnginfo=None)
            one.write_bytes(one.read_bytes() + bytes([rng.randrange(256)]))
        case 5:  # exchange two
            one.rename(root / "aside")
            other.rename(one)
            (root / "aside").rename(other)
        case 6:  # lose one
            if len(files) > 12:
                one.unlink()


@pytest.mark.parametrize("layout", ["plain", "folds", "manifest", "no test", "groups"])
@pytest.mark.parametrize("seed", range(6))
def test_no_image_that_trained_is_ever_held_out(layout: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    root = folder(tmp_path / "first")
    settings: dict[str, object] = {"seed": seed}
    if layout == "folds":
        settings |= {"folds": 3, "fold": seed % 3}
    if layout == "no test":
        settings |= {"test_fraction": 0.0}
    if layout == "groups":
        settings |= {"group_by": r"/\d"}
    if layout == "manifest":
        module(root).write_manifest(tmp_path / "labels.csv")
        settings |= {"manifest": tmp_path / "labels.csv"}
    fit = module(root, **settings)
    record = fit.split_record
    had = ids(fit, "train")
    tested = set() if layout == "no test" else ids(fit, "test")
    trained_paths = {image.path.relative_to(root) for image in fit.images("train")}
    later: dict[str, object] = {"test_fraction": 0.3} if layout == "no test" else {}
    for _ in range(4):
        for _ in range(rng.randrange(1, 5)):
            change(root, rng)
        root = root.rename(tmp_path / f"moved {rng.random()}")
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(root)
        for place in (root, tmp_path / "link"):
            data = follow(record, place, **later)
            assert not had & ids(data, "val", "test")
            held_out = [i for side in ("val", "test") for i in data.images(side)]  # type: ignore[arg-type]
            saved_again = [i.path for i in held_out if not record.knows_id(i.id)]
            assert not trained_paths & {path.relative_to(place) for path in saved_again}
            # Nor does a fit that goes on from the first train on what that one held out.
            assert not tested & ids(data, "train", "val")
            if layout != "manifest":
                assert len(data.folder.images) == len(list(root.rglob("*.png")))


def test_an_unchanged_folder_is_split_as_it_was_and_nothing_is_said(tmp_path: Path) -> None:
    fit = module(folder(tmp_path / "a"), folds=3, fold=1)
    again = follow(fit.split_record, Path(shutil.copytree(tmp_path / "a", tmp_path / "b")))
    for split in SPLITS:
        assert ids(again, split) == ids(fit, split)
    assert again.differences == ""


def test_what_differs_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    record = module(root).split_record
    paint(root / "ant" / "new.png", 77)
    paint(root / "ant" / "3.png", 78)
    (root / "bee" / "4.png").unlink()
    (root / "bee" / "5.png").rename(root / "bee" / "renamed.png")
    said = follow(record, root).differences
    assert "1 new, 1 changed, 1 gone; 18 are as they were" in said
    other = folder(tmp_path / "other")
    for number, path in enumerate(sorted(other.rglob("*.png"))):
        paint(path, 9000 + number)
    assert "is it another folder?" in follow(record, other).differences


def test_a_wholly_other_folder_is_split_anew(tmp_path: Path) -> None:
    record = module(folder(tmp_path / "a")).split_record
    for number in range(20):
        paint(tmp_path / "b" / CLASSES[number % 2] / f"other{number}.png", 5000 + number)
    followed, anew = follow(record, tmp_path / "b"), module(tmp_path / "b")
    for split in SPLITS:
        assert ids(followed, split) == ids(anew, split)


def test_a_fit_by_manifest_is_followed_without_it(tmp_path: Path) -> None:
    """Labels that no folder tells: they lie in the checkpoint as well."""
    for number in range(20):
        paint(tmp_path / "flat" / f"{number}.png", number)
    lines = [f"flat/{number}.png,{CLASSES[number % 2]}" for number in range(20)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    fit = module(tmp_path / "flat", manifest=tmp_path / "labels.csv")
    record = fit.split_record
    (tmp_path / "flat").rename(tmp_path / "elsewhere")
    (tmp_path / "labels.csv").unlink()
    again = follow(record, tmp_path / "elsewhere")
    assert again.class_names == CLASSES
    for split in SPLITS:
        pairs = [[(i.id, i.label) for i in data.images(split)] for data in (fit, again)]
        assert sorted(pairs[0]) == sorted(pairs[1])


def test_test_images_that_trained_as_copies_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "r"
    folder(root / "train"), folder(root / "test", images=4)
    for number in range(4):
        paint(root / "test" / "ant" / f"{number}.png", 5000 + number)
    record = module(root).split_record
    data = follow(record, root)
    assert len(data.images("test")) == 4  # those called bee are in train as well
    assert "4 images of the test side stood in train or val" in data.differences
    shutil.rmtree(root / "test" / "bee")
    assert "test side" not in follow(record, root).differences


def test_a_manifest_wins_but_may_not_test_what_trained(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    fit = module(root)
    record = fit.split_record
    trained = [image.path.relative_to(root) for image in fit.images("train")][:2]
    tested = [image.path.relative_to(root) for image in fit.images("test")]
    rows = [f"{path},ant,test" for path in (*trained, *tested)]
    manifest = tmp_path / "sides.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(ManifestError, match=r"found 2 of 6 that did.*--allow-reuse"):
        follow(record, root, manifest=manifest, class_names=CLASSES).images("test")
    allowed = module(root, manifest=manifest, class_names=CLASSES)
    allowed.follow(record, allow_reuse=True)
    with pytest.warns(UserWarning, match="flatter"):
        assert len(allowed.images("test")) == 6
    manifest.write_text("\n".join(["path,label,split", *rows[2:]]))
    assert len(follow(record, root, manifest=manifest, class_names=CLASSES).images("test")) == 4


def test_a_fit_that_goes_on_tests_by_what_was_tested_whatever_a_manifest_says(
    tmp_path: Path,
) -> None:
    root = folder(tmp_path / "a")
    fit = module(root)
    record = fit.split_record
    paint(root / "ant" / "new.png", 77)
    moved = {"train": "test", "test": "train", "val": "train"}
    rows = [
        f"{image.path.relative_to(root)},{CLASSES[image.label]},{moved[side]}"  # type: ignore[index]
        for side in SPLITS
        for image in fit.images(side)
    ]
    manifest = tmp_path / "sides.csv"
    manifest.write_text("\n".join(["path,label,split", *rows, "ant/new.png,ant,train"]))
    later = module(root, manifest=manifest)
    later.follow(record, always=True)
    for side in ("val", "test"):
        assert ids(later, side) == ids(fit, side)
    assert ids(later, "train") == {*ids(fit, "train"), file_id(root / "ant" / "new.png")}


def test_further_images_stand_beside_those_of_the_folder_and_their_labels_count(
    tmp_path: Path,
) -> None:
    root = folder(tmp_path / "a")
    fit = module(root)
    tested = fit.images("test")[0]
    for number in range(5):
        paint(tmp_path / "new" / f"{number}.png", 300 + number)
    rows = [f"new/{number}.png,cow" for number in range(5)]
    other = CLASSES[1 - int(str(tested.label))]
    rows.append(f"{tested.path.relative_to(tmp_path)},{other}")
    more = tmp_path / "more.csv"
    more.write_text("\n".join(["path,label", *rows]))
    with pytest.raises(ManifestError, match="5 elsewhere"):
        module(root, more=more).images("train")
    later = module(root, more=more, allow_outside=True)
    later.follow(fit.split_record, always=True)
    assert later.class_names == (*CLASSES, "cow")
    assert later.class_counts("train")["cow"] == 3
    assert ids(later, *SPLITS) == ids(fit, *SPLITS) | {
        file_id(tmp_path / "new" / f"{number}.png") for number in range(5)
    }
    (again,) = [image for image in later.images("test") if image.id == tested.id]
    assert later.class_names[int(str(again.label))] == other
    assert "5 new, 1 relabelled; 19 are as they were\nnew: cow" in later.differences
    anew = module(root, more=more, allow_outside=True)
    assert anew.class_names == (*CLASSES, "cow")


def test_what_an_earlier_fit_has_seen_is_remembered_by_the_next(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    first = module(root)
    lost = first.images("train")[0].path
    content = lost.read_bytes()
    record = first.split_record
    lost.unlink()
    second = follow(record, root)
    seen = second.split_record
    (root / "bee" / "back again.png").write_bytes(content)
    third = follow(seen, root)
    assert file_id(root / "bee" / "back again.png") in ids(third, "train")
