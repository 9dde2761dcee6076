"""Tables that ``finetune predict`` writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.tables.reading import read_table

WriteCheckpoint = Callable[..., Path]


def test_safe_csv_hides_formulas_from_spreadsheets_alone(
    write_probe: WriteCheckpoint, colour_folder: Path, tmp_path: Path
) -> None:
    Path("+1.png").write_bytes((colour_folder / "red" / "00.png").read_bytes())
    call = ["predict", str(write_probe("probe")), "+1.png", "--accelerator", "cpu", "--output"]
    assert main([*call, "plain.csv"]) == 0
    assert main([*call, "safe.csv", "--safe-csv"]) == 0
    lines = {name: Path(f"{name}.csv").read_text().splitlines()[1] for name in ("plain", "safe")}
    assert lines["plain"].startswith("+1.png,")
    assert lines["safe"].startswith("'+1.png,")
    assert read_table("plain.csv").paths == read_table("safe.csv").paths == ("+1.png",)


@pytest.mark.parametrize("output", [[], ["--output", "a.parquet"]])
def test_safe_csv_without_csv_is_refused(
    output: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "x.ckpt", "a.png", "--safe-csv", *output]) == 2
    assert "beside --safe-csv" in capsys.readouterr().err
