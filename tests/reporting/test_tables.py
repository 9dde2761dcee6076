"""CSV files out and in again."""

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune.errors import DataError
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.reporting.tables import read_predictions, write_per_class, write_predictions

AWKWARD = ['a "quoted", name', "<script>", "čeština", "p:p:"]


def some(n_images: int = 30) -> Evaluation:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=n_images).astype(np.float32)
    paths = [f"folder, {i}/picture\n{i}.jpg" for i in range(n_images)]
    return evaluate(rng.integers(0, 4, size=n_images), probabilities, AWKWARD, paths)


def test_predictions_survive_the_journey(tmp_path: Path) -> None:
    evaluation = some()
    write_predictions(tmp_path / "predictions.csv", evaluation)
    table = read_predictions(tmp_path / "predictions.csv")
    assert table.class_names == evaluation.class_names
    assert table.paths == evaluation.paths
    np.testing.assert_array_equal(table.labels, evaluation.labels)
    np.testing.assert_allclose(table.probabilities, evaluation.probabilities, rtol=1e-8)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["prediction"] == AWKWARD[evaluation.predictions[0]]
    assert float(row["confidence"]) == pytest.approx(evaluation.confidences[0])


def test_a_missing_label_is_minus_one(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,label,p:a,p:b\nx,,0.5,0.5\ny,b,0.1,0.9\n\n", encoding="utf-8-sig")
    assert read_predictions(path).labels.tolist() == [-1, 1]
    path.write_text("path,p:a,p:b\nx,0.5,0.5\n")
    assert read_predictions(path).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected columns"),
        ("path,label\nx,a\n", "expected columns"),
        ("path,label,p:a,p:b\nx,c,0.5,0.5\n", r"found \['c'\]"),
        ("path,label,p:a,p:b\nx,a,0.5\n", "expected 4 fields in row 2, found 3"),
        ("path,label,p:a,p:b\nx,a,much,little\n", "expected a number"),
        ("path,label,p:a,p:a\nx,a,0.5,0.5\n", "each column once"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_predictions(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CSV file of predictions"):
        read_predictions(tmp_path / "nothing.csv")


def test_per_class_leaves_undefined_figures_empty(tmp_path: Path) -> None:
    evaluation = evaluate([0, 0], [[0.9, 0.1], [0.6, 0.4]], ["a", "b"])
    write_per_class(tmp_path / "c.csv", evaluation.per_class)
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        a, b = csv.DictReader(file)
    assert (a["class"], a["recall"], a["support"]) == ("a", "1.0", "2")
    assert (b["recall"], b["precision"], b["few_images"]) == ("", "", "True")


def test_a_large_table_is_small_and_gives_the_same_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 200, 1100), rng.normal(size=(1100, 200))
    logits[np.arange(1100), labels] += 4
    logits[0] = 0  # every class alike
    logits[1] = np.where(np.arange(200) == labels[1], 0, -800)  # exactly 0 and 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    before = evaluate(labels, probabilities, [f"class {i}" for i in range(200)])
    path = tmp_path / "predictions.csv"
    write_predictions(path, before)
    assert path.stat().st_size < 8.2 * probabilities.size
    table = read_predictions(path)
    after = evaluate(table.labels, table.probabilities, table.class_names)
    np.testing.assert_array_equal(after.predictions, before.predictions)
    assert after.nll == pytest.approx(before.nll, rel=1e-3)
    assert after.calibration_error == pytest.approx(before.calibration_error, abs=1e-3)
