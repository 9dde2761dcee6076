import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.commands.runs import (
    link_latest,
    new_run_folder,
    read_metrics,
    run_folder_of,
    timed_fit,
    write_metrics,
    write_text,
)
from finetune.errors import UsageError


def test_every_run_gets_a_new_folder_even_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path / "runs", "x"), range(16)))
    assert sorted(folder.name for folder in folders) == sorted(f"x-{n}" for n in range(1, 17))


def test_processes_of_one_fit_share_its_folder(tmp_path: Path, monkeypatch) -> None:
    folder = new_run_folder(tmp_path, "x")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert new_run_folder(tmp_path, "x") == folder.absolute()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="plain run name"):
        new_run_folder(tmp_path, name)


def test_latest_points_at_the_newest(tmp_path: Path) -> None:
    for _ in range(2):
        folder = new_run_folder(tmp_path, "x")
        link_latest(folder)
    assert (tmp_path / "latest").resolve() == folder.resolve()


def test_the_run_folder_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    assert run_folder_of(checkpoint) is None
    (tmp_path / "run" / "config.yaml").touch()
    assert run_folder_of(checkpoint) == tmp_path / "run"
    assert run_folder_of(tmp_path / "alone.ckpt") is None


def test_metrics_of_the_stages_stand_beside_each_other(tmp_path: Path) -> None:
    write_metrics(tmp_path, "val", {"accuracy": 0.5})
    write_metrics(tmp_path, "test", {"accuracy": 0.25})
    write_metrics(tmp_path, "val", {"accuracy": 0.75})
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures == {"val": {"accuracy": 0.75}, "test": {"accuracy": 0.25}}
    write_text(tmp_path / "note", "é")
    assert (tmp_path / "note").read_text(encoding="utf-8") == "é"
    assert len(list(tmp_path.iterdir())) == 2


def test_runs_that_cannot_be_kept_name_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/runs"):
        with pytest.raises(UsageError, match="name another with --runs"):
            new_run_folder(tmp_path / place, "x")


def test_a_fits_seconds_add_up_over_its_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 130.5, 500.0, 512.0, 0.0, 1.0])
    monkeypatch.setattr("finetune.commands.runs.time.monotonic", lambda: next(clock))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    write_metrics(tmp_path, "val", {"accuracy": 0.5})
    with pytest.raises(KeyboardInterrupt), timed_fit(tmp_path):
        raise KeyboardInterrupt
    assert read_metrics(tmp_path)["fit"] == {"seconds": 30.5, "finished": False}
    with timed_fit(tmp_path):
        pass
    assert read_metrics(tmp_path)["fit"] == {"seconds": 42.5, "finished": True}
    assert read_metrics(tmp_path)["val"] == {"accuracy": 0.5}
    with timed_fit(tmp_path / "nothing kept"):
        pass
    assert not (tmp_path / "nothing kept").exists()
