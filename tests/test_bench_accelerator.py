"""The benchmark of accelerators runs, in tiny sizes, where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # the benchmark is no fit of a user


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import bench_accelerator

    monkeypatch.setattr(
        bench_accelerator, "quiet_libraries", lambda: None
    )  # which is for a process of its own
    return bench_accelerator


def test_it_prints_its_table_and_judges_no_processor(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--tiny", "--parts", "steps", "passes"]) == 0
    printed = capsys.readouterr().out
    for row in ("step alone", "from the folder", "passes", "on device", "predict", "goal: "):
        assert row in printed


def test_a_fit_is_split_by_what_it_says(bench: ModuleType) -> None:
    said = [
        (3.0, "60 train, 20 val images of 3 classes"),
        (3.1, "strategy   head-then-all"),
        (5.0, "phase 1: the final layer"),
        (5.5, "phase 2: everything for 2 epochs"),
        (9.0, "phase 2: better"),
        (9.5, "best.ckpt   accuracy 0.9"),
    ]
    parts = dict(bench.parts_of(said, imports=2.0, whole=10.0))
    assert parts == pytest.approx(
        {"imports": 2, "reading": 1, "probe": 2, "phases": 4.5, "writing": 0.5, "in all": 10}
    )
    assert sum(parts.values()) == pytest.approx(2 * parts["in all"])


def test_a_missed_goal_is_told(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.Report()
    report.goal("quick", 1.2, 1.0)
    report.goal("quicker", 0.9, 1.0)
    assert report.missed == ["quicker"]
    assert capsys.readouterr().out.count("MISSED") == 1
    assert sys.modules["accelerator_loops"].TINY.images < 50
