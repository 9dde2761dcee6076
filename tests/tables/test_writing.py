import csv
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest

from finetune.errors import UsageError
from finetune.tables.writing import format_of, open_table

NAMES = ["a", 'čeština, "b"']
ROWS = [
    ({"path": "été, 1.jpg", "prediction": 'a "b"', "confidence": 0.25}, [0.25, 0.75]),
    ({"path": "b.jpg", "prediction": "c", "confidence": 1e-9}, [1e-9, 1 - 1e-9]),
]
ENDINGS = ["csv", "parquet", "jsonl"]


def written(path: Path, **options: bool) -> Path:
    with open_table(path, NAMES, **options) as write:
        for row, probabilities in ROWS:
            write(row, [math.log(p) for p in probabilities])
            assert not path.exists()
    return path


def rows_of(path: Path) -> list[dict]:
    match path.suffix:
        case ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        case ".parquet":
            return pyarrow.parquet.read_table(path).to_pylist()
        case _:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_what_usual_readers_expect(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"answers.{ending}")
    for found, (row, probabilities) in zip(rows_of(path), ROWS, strict=True):
        assert list(found) == [*row, *(f"p:{name}" for name in NAMES)]
        assert (found["path"], found["prediction"]) == (row["path"], row["prediction"])
        assert float(found["confidence"]) == row["confidence"]
        numbers = [float(found[f"p:{name}"]) for name in NAMES]
        assert numbers == pytest.approx(probabilities, rel=1e-8)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interrupted_file_leaves_nothing(tmp_path: Path, ending: str) -> None:
    def interrupted() -> None:
        with open_table(tmp_path / f"a.{ending}", NAMES) as write:
            write(ROWS[0][0], [-1.0, -1.0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_parquet_of_many_rows_keeps_their_order(tmp_path: Path) -> None:
    with open_table(tmp_path / "a.parquet", NAMES) as write:
        for number in range(10_000):
            write({"number": number}, [-0.1, -2.3])
    assert [row["number"] for row in rows_of(tmp_path / "a.parquet")] == list(range(10_000))


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_that_are_no_utf8_are_written(tmp_path: Path, ending: str) -> None:
    with open_table(tmp_path / f"a.{ending}", ["x", "y\udcff"]) as write:
        write({"path": "\udce9t\udce9.jpg"}, [-0.7, -0.7])
    assert (tmp_path / f"a.{ending}").stat().st_size > 0


def test_safe_csv_leaves_no_cell_that_a_spreadsheet_computes(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "plain", "'=1"]
    path = tmp_path / "a.csv"
    with open_table(path, names, safe=True) as write:
        for name in names:
            write({"path": name, "prediction": name}, [math.log(1 / 8)] * 8)
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]


def test_unknown_endings_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.xlsx"):
        format_of("a.xlsx")
    with (
        pytest.raises(UsageError, match="found no"),
        open_table(tmp_path / "absent" / "a.csv", NAMES),
    ):
        pass
