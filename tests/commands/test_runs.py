import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.commands.runs import (
    free_stage,
    link_latest,
    new_run_folder,
    run_folder_of,
    timed_fit,
)
from finetune.errors import UsageError
from finetune.training.metrics_file import read_metrics, write_metrics


def test_every_run_gets_a_new_folder_even_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path / "runs", "x"), range(16)))
    assert sorted(folder.name for folder in folders) == sorted(f"x-{n}" for n in range(1, 17))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="plain run name"):
        new_run_folder(tmp_path, name)


def test_latest_points_at_the_newest(tmp_path: Path) -> None:
    for _ in range(2):
        folder = new_run_folder(tmp_path, "x")
        (folder / "config.yaml").touch()
        link_latest(folder)
    assert (tmp_path / "latest").resolve() == folder.resolve()


@pytest.mark.parametrize("kind", ["file", "folder", "link elsewhere", "link to a sibling"])
def test_what_is_called_latest_and_is_not_ours_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    runs = tmp_path / "runs"
    folder, latest = new_run_folder(runs, "x"), runs / "latest"
    (tmp_path / "theirs").mkdir()
    (runs / "notes").mkdir()
    if kind == "file":
        latest.write_text("mine")
    elif kind == "folder":
        latest.mkdir()
    else:
        latest.symlink_to({"link elsewhere": "../theirs", "link to a sibling": "notes"}[kind])
    before = os.readlink(latest) if latest.is_symlink() else latest.stat()
    link_latest(folder)
    assert (os.readlink(latest) if latest.is_symlink() else latest.stat()) == before
    assert "stays as it is" in capsys.readouterr().out
    assert sorted(os.listdir(runs)) == ["latest", "notes", "x-1"]


@pytest.mark.parametrize("target", ["gone-1", "latest"])
def test_a_link_of_ours_is_replaced_though_it_leads_nowhere(tmp_path: Path, target: str) -> None:
    folder = new_run_folder(tmp_path, "x")
    (tmp_path / "latest").symlink_to(target)
    link_latest(folder)
    assert os.readlink(tmp_path / "latest") == "x-1"


def test_latest_is_right_from_within_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(new_run_folder(tmp_path, "x"))
    link_latest(Path("."))
    assert os.readlink(tmp_path / "latest") == "x-1"


def test_where_there_are_no_links_a_file_names_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    note = tmp_path / "latest.txt"
    for number in (1, 2):
        link_latest(new_run_folder(tmp_path, "x"))
        assert note.read_text().strip().endswith(f"x-{number}")
    note.write_text("mine")
    link_latest(new_run_folder(tmp_path, "x"))
    assert note.read_text() == "mine"
    note.unlink()
    monkeypatch.setattr("finetune.files.sync", no_links)  # a full disk has neither
    link_latest(tmp_path / "x-3")
    assert sorted(os.listdir(tmp_path)) == ["x-1", "x-2", "x-3"]


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
    assert len(list(tmp_path.iterdir())) == 1


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


def test_figures_of_earlier_versions_are_read_under_the_names_of_today(tmp_path: Path) -> None:
    earlier = {"test": {"accuracy": 0.5, "pictures": "/data/pets", "ms_per_picture": 3.0}}
    (tmp_path / "metrics.json").write_text(json.dumps(earlier), encoding="utf-8")
    assert read_metrics(tmp_path)["test"] == {
        "accuracy": 0.5,
        "images": "/data/pets",
        "ms_per_image": 3.0,
    }
    # So a test of other images still stands beside it.
    assert free_stage(tmp_path, "test", "/data/other") == "test-other"
    assert free_stage(tmp_path, "test", "/data/pets") == "test"
