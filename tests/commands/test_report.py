"""``finetune report`` from the shell's side."""

import csv
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cli import main
from finetune.evaluation.evaluate import evaluate
from finetune.reporting.csv_files import write_predictions


def write(path: Path, seed: int = 0, n_images: int = 30, prefix: str = "") -> Path:
    rng = np.random.default_rng(seed)
    labels = np.arange(n_images) % 2
    probabilities = np.eye(2)[labels] * 0.5 + rng.dirichlet(np.ones(2), n_images) * 0.5
    probabilities[0] = 0.02, 0.98  # labelled as class 0
    paths = [f"{prefix}{i}.jpg" for i in range(n_images)]
    path.parent.mkdir(exist_ok=True)
    write_predictions(path, evaluate(labels, probabilities, ["ants", "bees"], paths))
    return path


def test_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(write(tmp_path / "p.csv")), "--output", str(page)]) == 0
    assert "29 of 30 right (97 %" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "Leaderboard" not in text
    assert "<h1><bdi>p</bdi></h1>" in text


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time and has its own tests."""
    monkeypatch.setattr("finetune.reporting.report.draw_all", lambda *_: [])


@pytest.mark.usefixtures("without_figures")
def test_several_side_by_side(tmp_path: Path) -> None:
    tables = [str(write(tmp_path / f"{name}.csv", seed)) for seed, name in enumerate("ab")]
    page = tmp_path / "page.html"
    assert main(["report", *tables, "--output", str(page), "--title", "Both"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Leaderboard" in text
    assert "a and b are not distinguishable" in text


@pytest.mark.usefixtures("without_figures")
def test_roots_may_be_spelled_differently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for number in range(30):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    spellings = ("photos/", f"{tmp_path}/photos/", f"{tmp_path}/link/", "gone/")
    tables = [
        str(write(tmp_path / f"{n}.csv", n, prefix=prefix)) for n, prefix in enumerate(spellings)
    ]
    page = tmp_path / "page.html"
    assert main(["compare", *tables[:3]]) == 0
    assert "on the 30 images" in capsys.readouterr().out
    assert main(["report", *tables[:3], "--output", str(page)]) == 0
    assert "Leaderboard" in page.read_text(encoding="utf-8")
    assert main(["report", *tables, "--output", str(page), "--overwrite"]) == 0
    assert "no comparison on the page" in capsys.readouterr().out


@pytest.mark.usefixtures("without_figures")
def test_folds_and_suspects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folds = [str(write(tmp_path / f"{i}.csv", i, prefix=f"fold{i}/")) for i in range(2)]
    page, suspects = tmp_path / "page.html", tmp_path / "suspects.csv"
    arguments = ["report", *folds, "--folds", "--suspects", str(suspects), "--output", str(page)]
    assert main(arguments) == 0
    assert "look at fold0/0.jpg: labelled ants, perhaps bees" in capsys.readouterr().out
    with suspects.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {rows[0]["path"], rows[1]["path"]} == {"fold0/0.jpg", "fold1/0.jpg"}
    assert "mean of 2 folds" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_figures")
def test_suspects_get_a_page_to_relabel_them_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = str(write(tmp_path / "p.csv")), tmp_path / "relabel.html"
    call = ["report", table, "--relabel", str(page), "--output", str(tmp_path / "r.html")]
    assert main(call) == 1  # nobody can look at images that are not there
    assert "--data.root" in capsys.readouterr().err
    assert not page.exists()
    (tmp_path / "images").mkdir()
    for number in range(30):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{number}.jpg")
    assert main([*call, "--data.root", str(tmp_path / "images")]) == 0
    assert "labels to look at in" in capsys.readouterr().out
    data = re.search(r'data-images="([^"]*)"', page.read_text(encoding="utf-8"))
    assert data is not None
    (shown,) = json.loads(unescape(data[1]))
    assert shown["path"] == str(tmp_path / "images" / "0.jpg")
    assert shown["said"] == "labelled ants; the classifier says bees (98%)"
    assert shown["choices"] == ["ants", "bees"]
    assert shown["image"].startswith("data:image/webp")


@pytest.mark.usefixtures("without_figures")
def test_where_no_label_is_suspected_there_is_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate([0, 1], np.eye(2) * 0.8 + 0.1, ["ants", "bees"], ["a.jpg", "b.jpg"])
    write_predictions(tmp_path / "p.csv", evaluation)
    assert main(["report", "p.csv", "--relabel", "relabel.html"]) == 0
    assert "no label is suspected" in capsys.readouterr().out
    assert not Path("relabel.html").exists()


def test_wrong_calls_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(write(tmp_path / "p.csv"))
    other = str(write(tmp_path / "q.csv", prefix="other/"))
    assert main(["report", table, "--output", str(tmp_path / "page.pdf")]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert main(["report", table, other, "--suspects", str(tmp_path / "s.csv")]) == 2
    assert main(["report", table, other, "--relabel", str(tmp_path / "r.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 4
    assert not list(tmp_path.glob("*.html"))
