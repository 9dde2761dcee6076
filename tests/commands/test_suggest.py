"""``finetune suggest``: doubtful images, unlike each other, each once; strangers apart."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import finetune
from finetune.cli import main
from finetune.combining.members import ClassifierMember
from finetune.combining.strangeness import near_images
from finetune.combining.unknown import UnknownRule
from finetune.commands.suggest import write_suggestions
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.inspection import Inspection, inspect_files
from finetune.data.manifest import read_manifest
from finetune.errors import DataError, UsageError
from finetune.prediction.feature_space import features_of
from finetune.prediction.suggestions import informative, spread, suggest_among
from finetune.training.checkpoints import ENTRY, read_content, write_checkpoint
from finetune.training.classifier import ImageClassifier

WriteCheckpoint = Callable[..., Path]


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 14))
def test_each_row_has_the_largest_score_times_distance_to_those_before(
    seed: int, rows: int, number: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, generator=generator) - 0.2
    features = torch.randn(rows, 3, generator=generator)
    taken = spread(scores, features, number)
    left = {row for row in range(rows) if scores[row] >= 0}
    assert len(taken) == min(number, len(left))
    points = torch.nn.functional.normalize(features.double(), dim=1)
    gone: list[int] = []
    for row in taken:
        nearest = {r: min([1.0, *(float(1 - points[r] @ points[g]) for g in gone)]) for r in left}
        best = max(float(scores[r]) * nearest[r] for r in left)
        assert float(scores[row]) * nearest[row] == pytest.approx(best, abs=1e-9)
        left.remove(row)
        gone.append(row)


def test_the_nearer_the_likeliest_two_the_more_a_label_tells() -> None:
    p = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    largest = np.sort(p.double().numpy(), axis=-1)
    margins = largest[:, -1] - largest[:, -2]
    np.testing.assert_allclose(informative(p).numpy(), 1 - margins, atol=1e-12)


@pytest.fixture
def unlabelled(colour_folder: Path, tmp_path: Path) -> Path:
    """All images in one folder, a copy and a near copy of one, and a file that is none."""
    folder = tmp_path / "new"
    folder.mkdir()
    for path in colour_folder.rglob("*.png"):
        shutil.copy(path, folder / f"{path.parent.name}{path.name}")
    shutil.copy(folder / "red00.png", folder / "red00 copy.png")
    with Image.open(folder / "red00.png") as image:
        image.convert("RGB").save(folder / "red00.jpg", quality=90)
    (folder / "broken.png").write_bytes(b"none")
    return folder


@pytest.fixture
def inspections(unlabelled: Path) -> list[Inspection]:
    files = sorted(unlabelled.iterdir())
    return inspect_files(files, root=unlabelled, perceptual=True, remember=False)


def test_copies_count_once_and_what_cannot_be_read_is_said(
    write_probe: WriteCheckpoint, inspections: list[Inspection]
) -> None:
    model = ImageClassifier.from_checkpoint(write_probe("s"))
    found = suggest_among(model, inspections, number=100)
    names = [Path(each.path).name for each in found.chosen]
    assert len(names) == len(set(names)) == 36
    assert sum(name.startswith("red00") for name in names) == 1
    assert found.left_out == {"that cannot be read": 1, "that are copies of others": 2}
    assert suggest_among(model, inspections, number=5).chosen == found.chosen[:5]
    assert found.chosen[0].score == max(each.score for each in found.chosen)
    assert {each.classes[0] for each in found.chosen} == {"blue", "green", "red"}


def test_images_of_the_fit_are_not_asked_for_again(
    write_probe: WriteCheckpoint, inspections: list[Inspection], colour_folder: Path
) -> None:
    model = ImageClassifier.from_checkpoint(write_probe("s"))
    split = ImageFolderDataModule(colour_folder, num_workers=0, cache="off").split_record
    model.details = {"data": {"seed": 0}, "split": split.plain}
    found = suggest_among(model, inspections)
    assert [Path(each.path).name for each in found.chosen] == ["red00.jpg"]
    assert found.left_out["of the fit"] == 36
    with pytest.raises(DataError, match="known to the fit"):
        suggest_among(model, [each for each in inspections if each.path.suffix != ".jpg"])


def test_unknown_images_stand_apart(
    write_probe: WriteCheckpoint, inspections: list[Inspection]
) -> None:
    model = ImageClassifier.from_checkpoint(write_probe("s"))
    known = [each.path for each in inspections if each.path.name.startswith("green")]
    features = torch.from_numpy(features_of(model, known).values)
    familiar = near_images(features, torch.zeros(len(features)))
    line = float(familiar.distances(features).max())
    rule = UnknownRule(familiar, 0.05, line, 20, (0.9, 0.8, 1.0))
    model.details = {"unknown": rule.to_entry()}
    found = suggest_among(model, inspections, number=50)
    assert {Path(each.path) for each in found.chosen} == set(known)
    assert len(found.unknown) == 24
    assert all(each.unknown for each in found.unknown)


def test_an_ensemble_answers_as_a_whole(
    write_probe: WriteCheckpoint, inspections: list[Inspection]
) -> None:
    paths = [write_probe("s"), write_probe("blurred", noise=1.0)]
    ensemble = finetune.Ensemble.from_checkpoints(paths)
    found = suggest_among(ensemble, inspections, number=4)
    answers = finetune.predict(ensemble, [each.path for each in found.chosen])
    assert [each.classes[0] for each in found.chosen] == answers.labels
    scores = [each.score for each in found.chosen]
    np.testing.assert_allclose(scores, informative(answers.probabilities).numpy(), atol=1e-5)


def test_of_labels_all_count_and_of_numbers_how_far_members_differ(
    inspections: list[Inspection],
) -> None:
    def made(seed: int, task: str, *names: str) -> ClassifierMember:
        torch.manual_seed(seed)
        model = ImageClassifier(names, "test_resnet", False, image_size=32, task=task)
        return ClassifierMember(model.eval(), f"{task}{seed}")

    labels = made(0, "multilabel", "big", "red").classifier
    found = suggest_among(labels, inspections, number=6)
    answers = finetune.predict(labels, [each.path for each in found.chosen])
    worth = 1 - (2 * answers.probabilities - 1).abs().mean(dim=1)
    np.testing.assert_allclose([each.score for each in found.chosen], worth.numpy(), atol=1e-5)
    assert [each.guess for each in found.chosen] == answers.labels
    members = [made(seed, "regression", "age") for seed in range(3)]
    together = finetune.Ensemble(members)
    first = suggest_among(together, inspections, number=1).chosen[0]
    every = finetune.predict(together, [each.path for each in inspections if not each.problem])
    assert every.disagreement is not None
    furthest = every.paths[int(every.disagreement.argmax())]
    assert first.path == str(furthest)
    assert (first.score, first.probability) == (pytest.approx(1), None)
    assert first.guess == finetune.predict(together, first.path).labels[0]
    with pytest.raises(UsageError, match="--heads"):
        suggest_among(members[0].classifier, inspections)


def test_a_guess_is_no_formula_with_safe_csv(
    write_probe: WriteCheckpoint, unlabelled: Path, tmp_path: Path
) -> None:
    model = ImageClassifier.from_checkpoint(write_probe("s"))
    model.class_names = ("=1+1", "green", "red")
    inspected = inspect_files(sorted(unlabelled.glob("blue*")), root=unlabelled, perceptual=True)
    found = suggest_among(model, inspected)
    for safe, guess in ((False, "=1+1"), (True, "'=1+1")):
        write_suggestions(tmp_path / "s.csv", found, safe=safe)
        with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as table:
            assert guess in {row["guess"] for row in csv.DictReader(table)}
    assert main(["suggest", "x.ckpt", str(unlabelled), "--safe-csv"]) == 2


def test_the_verb_writes_a_table_and_a_page(
    write_probe: WriteCheckpoint, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["suggest", str(write_probe("s")), str(unlabelled), "--number=5", "--output=s.csv"]
    assert main([*call, "--page=label.html"]) == 0
    assert "5 of 39 images to label, what tells most first" in capsys.readouterr().out
    with open("s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [""] * 5
    page = Path("label.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in unescape(page)
    data = re.search(r'data-images="([^"]*)"', page)
    assert data is not None
    shown = json.loads(unescape(data[1]))
    assert [each["path"] for each in shown] == [row["path"] for row in rows]
    assert all(each["choices"] == ["blue", "green", "red"] for each in shown)
    # Filled in, the table is a manifest.
    filled = [{**row, "label": "blue"} for row in rows]
    with open("filled.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, filled[0])
        writer.writeheader()
        writer.writerows(filled)
    assert len(read_manifest("filled.csv", unlabelled).images) == 5
    assert main(call) == 2  # it is there


def test_nothing_is_written_among_the_images(
    write_probe: WriteCheckpoint, unlabelled: Path
) -> None:
    for option in ({"output": unlabelled / "s.csv"}, {"page": unlabelled / "l.html"}):
        with pytest.raises(UsageError, match="outside the images"):
            finetune.suggest(write_probe("s"), unlabelled, **option)


@pytest.fixture
def known_probe(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path
) -> Callable[..., Path]:
    """A checkpoint that knows its images, and how its final layer came about."""

    def write(**fit: object) -> Path:
        module = ImageFolderDataModule(colour_folder, num_workers=0, cache="off")
        content = read_content(write_probe("s"))
        told = {"split": module.split_record.plain, "fit": {"phase": 0, **fit}}
        path = tmp_path / f"known{len(fit)}.ckpt"
        write_checkpoint(
            path,
            state_dict=content["state_dict"],
            hyper_parameters=content["hyper_parameters"],
            entry={**content[ENTRY], **told},
        )
        return path

    return write


def test_what_more_labels_bring_is_said_and_stands_on_the_page(
    known_probe: Callable[..., Path],
    unlabelled: Path,
    colour_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune.prediction.label_worth.FEWEST", 20)
    path = known_probe(probe={"l2": 1.0})
    call = ["suggest", str(path), str(unlabelled), "--data.root", str(colour_folder)]
    assert main([*call, "--number=1", "--page=label.html"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"raise the accuracy by (\S+) points \[(\S+), (\S+)\]", said)
    assert found is not None
    value, low, high = map(float, found.groups())
    assert low <= value <= high
    assert "abelling " in said
    page = unescape(Path("label.html").read_text(encoding="utf-8"))
    assert found[0] in page


@pytest.mark.parametrize(
    ("fit", "said"),
    [({"probe": {"l2": 1.0}}, "Expected 40 images"), ({}, "a fit of the final layer alone")],
    ids=["few images", "fine-tuned"],
)
def test_where_there_is_no_curve_the_suggestions_stand(
    fit: dict[str, object],
    said: str,
    known_probe: Callable[..., Path],
    unlabelled: Path,
    colour_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = ["suggest", str(known_probe(**fit)), str(unlabelled), "--data.root", str(colour_folder)]
    assert main([*call, "--number=1"]) == 0
    out = capsys.readouterr().out
    assert "1 of 39 images to label" in out
    assert f"no learning curve: {said}" in out.replace("Expected a fit", "a fit")
    assert main([*call[:-1], str(unlabelled), "--number=1"]) == 2
    assert "images of the fit" in capsys.readouterr().err
