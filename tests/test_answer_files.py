import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from finetune.answer_files import format_of, open_answer_file
from finetune.errors import UsageError

ROWS = [
    {"path": "été, 1.jpg", "prediction": 'a "b"', "confidence": 0.25},
    {"path": "b.jpg", "prediction": "c", "confidence": 1e-9},
]


def read(path: Path) -> list[dict]:
    match path.suffix:
        case ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                rows = [dict(row) for row in csv.DictReader(file)]
            return [{**row, "confidence": float(row["confidence"])} for row in rows]
        case ".parquet":
            return pyarrow.parquet.read_table(path).to_pylist()
        case _:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_rows_are_read_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"answers.{ending}"
    with open_answer_file(path) as write:
        for row in ROWS:
            write(row)
            assert not path.exists()
    assert read(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_an_interrupted_file_leaves_nothing(tmp_path: Path, ending: str) -> None:
    def interrupted() -> None:
        with open_answer_file(tmp_path / f"a.{ending}") as write:
            write(ROWS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_parquet_of_many_rows_keeps_their_order(tmp_path: Path) -> None:
    with open_answer_file(tmp_path / "a.parquet") as write:
        for number in range(10_000):
            write({"number": number})
    assert [row["number"] for row in read(tmp_path / "a.parquet")] == list(range(10_000))


def test_unknown_endings_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.xlsx"):
        format_of("a.xlsx")
    with (
        pytest.raises(UsageError, match="found no"),
        open_answer_file(tmp_path / "absent" / "a.csv"),
    ):
        pass
