import contextlib
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from PIL import Image
from torch.testing import assert_close

from finetune import ImageClassifier, predict
from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.errors import DataError, ImageError, UsageError
from finetune.exporting.copying import exportable_copy
from finetune.prediction import find_images
from finetune.prediction.feature_space import features_of
from finetune.tables.reading import read_table

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(CLASSES, "test_resnet", pretrained=False, image_size=32).eval()


def test_a_classifier_that_is_asked_in_training_trains_on(classifier, colour_folder: Path) -> None:
    learning = deepcopy(classifier).train()
    modes = [module.training for module in learning.modules()]
    assert any(modes)
    features_of(learning, colour_folder)
    exportable_copy(learning)
    assert [module.training for module in learning.modules()] == modes
    assert all(parameter.requires_grad for parameter in learning.parameters())
    expected = predict(classifier, colour_folder)
    assert torch.equal(predict(learning, colour_folder).logits, expected.logits)


def test_answers_equal_a_forward_of_each_image(classifier, colour_folder: Path) -> None:
    predictions = predict(classifier, colour_folder, batch_size=5)
    assert len(predictions) == 36
    assert predictions.class_names == CLASSES
    assert_close(predictions.probabilities.sum(dim=1), torch.ones(36))
    transform = evaluation_transform(classifier.preprocessing)
    for index in (0, 17, 35):
        path, short_side = predictions.paths[index], classifier.preprocessing.resize_size
        image = transform(ImageReader(short_side=short_side)(path))[None]
        with torch.inference_mode():
            expected = classifier(image).softmax(-1)[0]
        assert_close(predictions.probabilities[index], expected)
    best = predictions.probabilities.argmax(-1).tolist()
    assert predictions.labels == [CLASSES[index] for index in best]
    assert_close(predictions.confidences, predictions.probabilities.max(-1).values)


def test_images_are_found_in_the_order_given(colour_folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    red = colour_folder / "red" / "03.png"
    found = find_images([red, str(colour_folder / "blue" / "0[12].png"), colour_folder / "green"])
    assert found[0] == red
    assert [path.name for path in found[1:3]] == ["01.png", "02.png"]
    assert len(found) == 15
    assert find_images([red, red]) == [red, red]  # answers line up with what was asked
    assert len(find_images([red, colour_folder / "red"])) == 12
    with pytest.raises(DataError, match="found nothing at"):
        find_images([tmp_path / "absent.jpg"])
    with pytest.raises(DataError, match="found none"):
        find_images(tmp_path)


def test_a_thousand_folders_within_each_other_are_searched(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with contextlib.chdir(tmp_path):
        for _ in range(1000):
            os.mkdir("d")
            os.chdir("d")
        Image.new("RGB", (8, 8)).save("b.png")
    found = find_images(tmp_path)
    assert [path.name for path in found] == ["a.png", "b.png"]
    found[1].unlink()
    os.removedirs(found[1].parent)  # pytest's own way of removing them recurses


def test_folders_that_are_links_are_searched_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "real" / "a.png")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "given" / "round").symlink_to(tmp_path / "given")
    assert find_images(tmp_path / "given") == [tmp_path / "given" / "link" / "a.png"]


def test_a_broken_image_is_refused_or_listed(classifier, colour_folder, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("<html>404</html>")
    good = colour_folder / "red" / "00.png"
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        predict(classifier, [good, broken])
    predictions = predict(classifier, [broken, good], on_bad_image="skip")
    assert predictions.paths == (good,)
    assert [path for path, _ in predictions.skipped] == [broken]
    with pytest.raises(ImageError, match="at least one readable"):
        predict(classifier, [broken], on_bad_image="skip")


def test_the_table_names_the_most_probable_classes(classifier, colour_folder: Path) -> None:
    predictions = predict(classifier, colour_folder / "red" / "00.png")
    (row,) = predictions.rows(top_k=2)
    ranked = predictions.probabilities[0].sort(descending=True)
    assert row["prediction"] == CLASSES[int(ranked.indices[0])]
    assert row["prediction_2"] == CLASSES[int(ranked.indices[1])]
    assert row["confidence_2"] == pytest.approx(float(ranked.values[1]))
    assert [row[f"p:{name}"] for name in CLASSES] == predictions.probabilities[0].tolist()


def test_answers_are_handed_over_as_they_come(classifier, colour_folder: Path) -> None:
    heard = []
    predictions = predict(
        classifier, colour_folder, on_answer=lambda path, probabilities: heard.append(path)
    )
    assert tuple(heard) == predictions.paths


def test_tables_are_written_in_both_formats(classifier, colour_folder, tmp_path: Path) -> None:
    predictions = predict(classifier, colour_folder / "red")
    predictions.to_csv(tmp_path / "a.csv")
    predictions.to_parquet(tmp_path / "a.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.parquet"}


def test_wrong_arguments_are_refused_by_name(classifier, colour_folder: Path) -> None:
    red = colour_folder / "red" / "03.png"
    with pytest.raises(UsageError, match="one of error, skip, found 'ignore'"):
        predict(classifier, red, on_bad_image="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size of at least 1"):
        predict(classifier, red, batch_size=0)
    with pytest.raises(UsageError, match="found str; open a file with ImageClassifier"):
        predict("best.ckpt", red)  # type: ignore[arg-type]


def test_nothing_is_printed_in_a_notebook(classifier, colour_folder: Path) -> None:
    script = (
        "from finetune import ImageClassifier, predict\n"
        "classifier = ImageClassifier(('a', 'b'), 'test_resnet', pretrained=False, image_size=32)\n"
        f"predict(classifier, {str(colour_folder / 'red' / '03.png')!r}, num_workers=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dots_in_a_tables_name_stay(classifier, colour_folder: Path, tmp_path: Path) -> None:
    predict(classifier, colour_folder / "red" / "03.png").to_csv(tmp_path / "v1.2")
    assert [path.name for path in tmp_path.iterdir()] == ["v1.2.csv"]


def test_a_safe_table_is_read_back_as_it_was(classifier, colour_folder, tmp_path: Path) -> None:
    image = tmp_path / "=HYPERLINK(1).png"
    image.write_bytes((colour_folder / "red" / "00.png").read_bytes())
    predictions = replace(predict(classifier, image), paths=(Path(image.name),))
    for safe in (False, True):
        predictions.to_csv(tmp_path / "a.csv", safe=safe)
        cells = [line.split(",")[0] for line in (tmp_path / "a.csv").read_text().splitlines()]
        assert cells == ["path", f"{chr(39) * safe}{image.name}"]
        table = read_table(tmp_path / "a.csv")
        assert table.paths == (image.name,)
        assert table.resolved_paths() == (str(image),)
        found = torch.from_numpy(table.logits).softmax(-1).float()
        assert_close(found, predictions.probabilities)


def held_in_all_ways(path: Path) -> dict[str, object]:
    """One image as a file's bytes, of Pillow, as arrays and as tensors."""
    array = np.asarray(Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return {
        "bytes": path.read_bytes(),
        "Pillow": Image.open(path),
        "Pillow, transparent": Image.open(path).convert("RGBA"),
        "array": array,
        "array, transparent": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "tensor": tensor,
        "tensor of floats": tensor / 255,
        "batch of arrays": array[None],
        "batch of tensors": tensor[None],
    }


def test_what_a_program_holds_is_answered_as_its_file_is(classifier, colour_folder: Path) -> None:
    path = colour_folder / "red" / "03.png"
    expected = predict(classifier, path).logits
    ways = held_in_all_ways(path)
    for way, held in ways.items():
        found = predict(classifier, held)
        assert torch.equal(found.logits, expected), way
        assert found.paths == (Path("image 0"),)
    mixed = [path, *(held for way, held in ways.items() if "batch" not in way)]
    together = predict(classifier, mixed)
    assert together.paths == (path, *(Path(f"image {number}") for number in range(1, len(mixed))))
    assert_close(together.logits, expected.expand(len(mixed), -1))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "one channel", "tensor"])
def test_grey_in_memory(classifier, tmp_path: Path, kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    held = {
        "uint8": grey,
        "uint16": grey.astype(np.uint16) * 257,
        "one channel": grey[..., None],
        "tensor": torch.from_numpy(grey)[None],
    }[kind]
    expected = predict(classifier, tmp_path / "grey.png").logits
    assert torch.equal(predict(classifier, held).logits, expected)


def test_a_photograph_that_lies_on_its_side_in_memory(classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "side.png", exif=exif)
    expected = predict(classifier, tmp_path / "side.png").logits
    assert torch.equal(predict(classifier, Image.open(tmp_path / "side.png")).logits, expected)


@pytest.mark.parametrize(
    "held",
    [b"no image", np.zeros((4, 4, 5), np.uint8), torch.zeros(5, 4, 4), np.zeros((2, 3), complex)],
    ids=["bytes", "five channels", "tensor of five", "complex"],
)
def test_what_is_no_image_in_memory_is_refused_or_left_out(classifier, held) -> None:
    with pytest.raises(ImageError, match=r"found .* at image 1"):
        predict(classifier, [np.zeros((8, 8, 3), np.uint8), held])
    kept = predict(classifier, [np.zeros((8, 8, 3), np.uint8), held], on_bad_image="skip")
    assert len(kept) == 1
    assert [path for path, _ in kept.skipped] == [Path("image 1")]


def test_too_many_pixels_in_memory(classifier) -> None:
    with pytest.raises(ImageError, match="at most 100 pixels"):
        predict(classifier, np.zeros((11, 10, 3), np.uint8), max_pixels=100)


def test_a_script_is_run_by_one_process_however_many_devices_there_are(
    classifier, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several, Lightning would start the caller's script again for each of the others."""
    monkeypatch.setattr(CPUAccelerator, "auto_device_count", lambda: 2)
    started: list[object] = []
    monkeypatch.setattr(_SubprocessScriptLauncher, "launch", lambda *_, **__: started.append(1))
    assert len(predict(classifier, colour_folder / "red" / "03.png")) == 1
    assert not started
