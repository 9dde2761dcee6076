"""CSV files out and in again."""

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune.evaluation.evaluate import evaluate, evaluate_logits
from finetune.evaluation.result import Evaluation
from finetune.reporting.csv_files import write_parts, write_predictions
from finetune.reporting.sources import read_evaluation
from finetune.tables.reading import read_table

AWKWARD = ['a "quoted", name', "<script>", "čeština", "p:p:"]


def some(n_images: int = 30) -> Evaluation:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=n_images).astype(np.float32)
    paths = [f"folder, {i}/image\n{i}.jpg" for i in range(n_images)]
    return evaluate(rng.integers(0, 4, size=n_images), probabilities, AWKWARD, paths)


def test_predictions_survive_the_journey(tmp_path: Path) -> None:
    evaluation = some()
    write_predictions(tmp_path / "predictions.csv", evaluation)
    table = read_table(tmp_path / "predictions.csv")
    assert table.class_names == evaluation.class_names
    assert table.paths == evaluation.paths
    np.testing.assert_array_equal(table.labels, evaluation.labels)
    np.testing.assert_allclose(table.logits, evaluation.log_probabilities, atol=1e-8)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["prediction"] == AWKWARD[evaluation.predictions[0]]
    assert float(row["confidence"]) == pytest.approx(evaluation.confidences[0])


def test_per_class_leaves_undefined_figures_empty(tmp_path: Path) -> None:
    evaluation = evaluate([0, 0], [[0.9, 0.1], [0.6, 0.4]], ["a", "b"])
    write_parts(tmp_path / "c.csv", evaluation.parts[1])
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        a, b = csv.DictReader(file)
    assert (a["class"], a["recall"], a["support"]) == ("a", "1.0", "2")
    assert (b["recall"], b["precision"], b["few_images"]) == ("", "", "True")


def test_a_large_table_gives_the_same_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 200, 1100), rng.normal(size=(1100, 200))
    logits[np.arange(1100), labels] += 4
    logits[0] = 0  # every class alike
    logits[1] = np.where(np.arange(200) == labels[1], -4000, 0)
    before = evaluate_logits(labels, logits, [f"class {i}" for i in range(200)])
    path = tmp_path / "predictions.csv"
    write_predictions(path, before)
    assert path.stat().st_size < 16 * logits.size
    after = read_evaluation(path)
    np.testing.assert_array_equal(after.predictions, before.predictions)
    for name in ("accuracy", "nll", "brier", "calibration_error", "macro_f1"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-8)
