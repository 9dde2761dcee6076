"""``finetune compare`` from the shell's side."""

from pathlib import Path

import numpy as np
import pytest

from finetune.cli import main
from finetune.evaluation.evaluate import evaluate
from finetune.reporting.csv_files import write_predictions


def write(path: Path, accuracy: float, seed: int) -> str:
    rng = np.random.default_rng(seed)
    labels = np.arange(200) % 2
    predictions = np.where(rng.random(200) < accuracy, labels, 1 - labels)
    paths = [f"{i}.jpg" for i in range(200)]
    evaluation = evaluate(labels, np.eye(2)[predictions] * 0.8 + 0.1, ["a", "b"], paths)
    write_predictions(path, evaluation)
    return str(path)


def test_the_leaderboard_says_which_differences_are_real(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.reporting.report.draw_all", lambda *_: [])  # tested elsewhere
    sources = [
        write(tmp_path / "poor.csv", 0.6, 0),
        write(tmp_path / "good.csv", 0.93, 1),
        write(tmp_path / "fine.csv", 0.92, 2),
    ]
    page = tmp_path / "comparison.html"
    assert main(["compare", *sources, "--output", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("poor ")
    assert {lines[1].split()[0], lines[2].split()[0]} == {"good", "fine"}
    assert "*" in lines[1]
    assert "*" in lines[2]
    assert "*" not in lines[3]
    text = "\n".join(lines)
    assert "good is better than poor by" in text
    assert "not distinguishable: " in text
    assert "Leaderboard" in page.read_text(encoding="utf-8")


def test_one_run_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write(tmp_path / "a.csv", 0.9, 0)]) == 2
    assert "at least two" in capsys.readouterr().err
