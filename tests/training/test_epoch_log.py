import csv
from pathlib import Path

import pytest

from finetune.training.epoch_log import EpochLog, append, cut_back, read_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def row(phase: int, epoch: int, **figures: float) -> dict:
    return {"phase": phase, "epoch": epoch, "step": 3 * epoch + 2, **figures}


def table(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_appended_and_new_columns_find_their_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    append(path, row(1, 0, a=0.5))
    first = path.read_text()
    append(path, row(1, 1, a=0.25))
    assert path.read_text().startswith(first)
    append(path, row(2, 0, a=0.1, b=7.0))
    append(path, row(2, 1, b=8.0))
    assert [(line["epoch"], line["a"], line["b"]) for line in table(path)] == [
        ("0", "0.5", ""),
        ("1", "0.25", ""),
        ("0", "0.1", "7.0"),
        ("1", "", "8.0"),
    ]


@pytest.mark.parametrize(
    ("phase", "epochs", "left"), [(1, 0, 0), (1, 1, 1), (1, 5, 2), (2, 0, 2), (2, 1, 3), (3, 0, 4)]
)
def test_rows_beyond_the_checkpoint_are_cut(
    phase: int, epochs: int, left: int, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.csv"
    rows = [row(1, 0, a=1.0), row(1, 1, a=2.0), row(2, 0, a=3.0), row(2, 1, a=4.0)]
    for each in rows:
        append(path, each)
    whole = path.read_bytes()
    cut_back(path, phase=phase, epochs=epochs)
    assert len(read_rows(path)) == left
    for each in rows[left:]:
        append(path, each)
    assert path.read_bytes() == whole


def test_half_a_row_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    append(path, row(1, 0, a=1.0))
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write("1,1,5")
    cut_back(path, phase=1, epochs=1)
    assert path.read_bytes() == whole


def test_rows_of_earlier_versions_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,val/nll\n0,2,0.5\n,2,\n")
    cut_back(path, phase=1, epochs=1)
    append(path, row(1, 1, a=1.0))
    assert [line["val/nll"] for line in table(path)] == ["0.5", "", ""]


def test_a_fit_logs_a_row_an_epoch_and_no_epoch_twice(run, colour_folder, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    options = {"epochs": 3, "patience": 0}
    whole = EpochLog(path, 0)
    run(colour_folder, tmp_path / "fit", "all", callbacks=[whole], epochs=options["epochs"])
    lines = table(path)
    assert [line["epoch"] for line in lines] == ["0", "1", "2"]
    assert {"lr-1", "train/loss", "val/nll", "val/accuracy"} <= set(lines[0])
    assert all(value for line in lines for value in line.values())
