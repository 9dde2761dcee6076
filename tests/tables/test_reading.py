"""What was written comes back as it was; what is not as it should be is refused by its line."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.tables.cells import (
    SMALLEST_LOG,
    disambiguated,
    escaped,
    log_probability,
    probability_text,
    unescaped,
)
from finetune.tables.reading import read_table
from finetune.tables.writing import open_table

AWKWARD = ['a "quoted", name', "<script>", "čeština", "p:p:", "=1+1", "'=1", "-"]


@given(st.floats(-1e5, 0))
@settings(deadline=None)
def test_no_probability_is_too_small_to_be_read_back(log: float) -> None:
    assert log_probability(probability_text(log)) == pytest.approx(log, rel=1e-9, abs=1e-8)
    exact = log_probability(probability_text(log, exact=True))
    assert exact == pytest.approx(log, rel=1e-9, abs=1e-15)
    assert 0 <= float(probability_text(log)) <= 1  # other readers take it for a number


@pytest.mark.parametrize("text", ["-0.1", "1.5", "nan", "inf", "much", "", "1e-", "0x1p-2"])
def test_what_is_no_probability_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        log_probability(text)


def test_exactly_zero_is_the_smallest_float() -> None:
    zeros = [log_probability(text) for text in ("0", "0.0", "0e-400")]
    assert zeros == [SMALLEST_LOG] * 3


@given(st.text())
@settings(deadline=None)
def test_escaping_is_undone(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert unescaped(disambiguated(text)) == text
    assert escaped(text)[:1] not in tuple("=+-@\t\r")


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_table_survives_the_journey(tmp_path: Path, ending: str, safe: bool) -> None:
    if safe and ending != "csv":
        return
    rng = np.random.default_rng(0)
    logs = np.log(rng.dirichlet(np.ones(len(AWKWARD)), size=30))
    labels = rng.integers(-1, len(AWKWARD), size=30)
    paths = [f"{' ' * (i == 3)}{AWKWARD[i % 7]}, {i}/ image\n{i}.jpg" for i in range(30)]
    file = tmp_path / f"a.{ending}"
    with open_table(file, AWKWARD, safe=safe) as write:
        for path, label, row in zip(paths, labels, logs, strict=True):
            write({"path": path, "label": "" if label < 0 else AWKWARD[label]}, row.tolist())
    table = read_table(file)
    assert table.class_names == tuple(AWKWARD)
    assert table.paths == tuple(paths)
    np.testing.assert_array_equal(table.labels, labels)
    np.testing.assert_allclose(table.logits, logs, atol=1e-8)
    np.testing.assert_array_equal(table.logits.argmax(1), logs.argmax(1))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_answers_too_sure_for_a_float_survive(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    with open_table(file, ["a", "b"]) as write:
        write({"path": "x"}, [0.0, -4000.123])
    assert read_table(file).logits[0].tolist() == pytest.approx([0, -4000.123])


def test_parquet_holds_no_less_than_the_smallest_float(tmp_path: Path) -> None:
    with open_table(tmp_path / "a.parquet", ["a", "b"]) as write:
        write({"path": "x"}, [0.0, -4000.0])
    found = read_table(tmp_path / "a.parquet").logits[0, 1]
    assert found == pytest.approx(SMALLEST_LOG, abs=0.1)


def test_a_missing_label_is_minus_one_and_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,label,p:a,p:b\nx,,0.5,0.5\ny,b,0.1,0.9\n\n", encoding="utf-8-sig")
    assert read_table(path).labels.tolist() == [-1, 1]
    path.write_text("path,p:a,p:b\nx,0.5,0.5\n")
    assert read_table(path).labels.tolist() == [-1]


def test_a_table_of_few_digits_as_older_versions_wrote_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,label,prediction,confidence,p:a,p:b,p:c\nx,a,a,.981,.981,.0187,5.1e-9\n")
    found = np.exp(read_table(path).logits[0])
    np.testing.assert_allclose(found, [0.981, 0.0187, 5.1e-9], rtol=1e-3)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected columns"),
        ("path,label\nx,a\n", "expected columns"),
        ("path,label,p:a,p:b\nx,c,0.5,0.5\n", "line 2: expected a label .*found 'c'"),
        ("path,label,p:a,p:b\nx,a,0.5\n", "4 cells in line 2 .* found 3"),
        ("path,label,p:a,p:b\nx,a,0.5,0.5,0\n", "4 cells in line 2 .* found 5"),
        ("path,label,p:a,p:b\nx,a,much,little\n", "line 2: expected a probability"),
        ("path,label,p:a,p:b\nx,a,nan,0.5\n", "line 2: expected a probability"),
        ("path,label,p:a,p:b\nx,a,0.5,0.6\n", "line 2: expected .* sum to 1, found 1.1"),
        ("path,label,p:a,p:a\nx,a,0.5,0.5\n", "each column once"),
        ('path,p:a,p:b\nx,0.5,0.5\n"x\ny",1,0\nx,1,0\n', "line 5: expected each image once"),
        ('path,p:a,p:b\n"x,0.5,0.5\n', "found something else"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    "text", ['{"path": "x", "p:a": 1, "p:b": 0}\n{"path": "y"}\n', "[1]\n", "{\n"]
)
def test_wrong_json_lines_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"line \d: expected"):
        read_table(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "p.parquet").write_text("nothing of the kind")
    for name in ("p.csv", "pipe.csv", "absent.csv", "p.parquet"):
        with pytest.raises(DataError, match=r"at .* found no"):
            read_table(tmp_path / name)


def test_relative_paths_start_at_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "1.jpg").touch()
    (tmp_path / "here" / "2.jpg").touch()
    table = tmp_path / "there" / "p.csv"
    table.write_text("path,p:a,p:b\n1.jpg,0.5,0.5\n2.jpg,1,0\n3.jpg,0,1\n/x/4.jpg,0,1\n")
    monkeypatch.chdir(tmp_path / "here")
    expected = [tmp_path / "there/1.jpg", tmp_path / "here/2.jpg", tmp_path / "there/3.jpg"]
    assert read_table(table).resolved_paths() == (*map(str, expected), "/x/4.jpg")


def test_smallest_log_is_that_of_the_smallest_float() -> None:
    assert math.exp(SMALLEST_LOG) == pytest.approx(5e-324)
