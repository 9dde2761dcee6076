"""Cores that containers, schedulers and the processes beside leave to this one."""

import os
import sys
from pathlib import Path

import pytest
import torch

from finetune.data import workers
from finetune.data.workers import choose_num_workers, cpu_quota, limit_threads, usable_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def version_2(root: Path, place: str, **quotas: str) -> Path:
    write(root / "proc/self/cgroup", f"0::{place}\n")
    for folder, text in quotas.items():
        write(root / "sys/fs/cgroup" / folder.replace("_", "/") / "cpu.max", text)
    return root


def test_without_control_groups_all_time_may_be_used(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "quota"), [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("max 100000\n", None)]
)
def test_the_quota_of_a_container(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cpu_quota(version_2(tmp_path, "/", **{"": text})) == quota


def test_the_least_of_the_groups_above_counts(tmp_path: Path) -> None:
    quotas = {"pod": "300000 100000", "pod_job": "max 100000", "other": "100000 100000"}
    assert cpu_quota(version_2(tmp_path, "/pod/job", **quotas)) == 3.0


def test_a_place_that_is_only_the_hosts(tmp_path: Path) -> None:
    assert cpu_quota(version_2(tmp_path, "/docker/abc", **{"": "400000 100000"})) == 4.0


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2.5), ("-1", None)])
def test_version_1(tmp_path: Path, quota: str, expected: float | None) -> None:
    write(tmp_path / "proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", f"{quota}\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, 4), (2.0, 2), (1.5, 2), (8.0, 4)], ids=lambda each: str(each)
)
def test_no_more_threads_than_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(16)}, raising=False)
    monkeypatch.setattr(workers, "cpu_quota", lambda: quota)
    try:
        torch.set_num_threads(4)
        limit_threads()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "threads"), [(None, "2"), ("1", "1"), ("8", "2")])
def test_a_quota_limits_threads_without_loading_torch(
    monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
) -> None:
    """The first screen under a container's quota waits for no torch."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(16)}, raising=False)
    monkeypatch.setattr(workers, "cpu_quota", lambda: 2.0)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == threads
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("quota", "environment", "cores"),
    [
        (None, {}, 16),
        (2.5, {}, 3),
        (0.5, {}, 1),
        (64.0, {}, 16),
        (None, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 4),
        (None, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 8),
        (2.0, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 1),
    ],
)
def test_what_is_left_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    environment: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(16)}, raising=False)
    monkeypatch.setattr(workers, "cpu_quota", lambda: quota)
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert usable_cores() == cores


@pytest.mark.parametrize(("free", "expected"), [(64_000_000, 4), (None, 8), (10**12, 8), (1000, 0)])
def test_readers_are_no_more_than_shared_memory_has_room_for(
    free: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 1000)
    monkeypatch.setattr(workers, "shared_bytes", lambda: free)
    many = [tmp_path / "a.png"] * 100_000
    assert choose_num_workers(many, cores=16, batch_bytes=5_000_000) == expected
    assert choose_num_workers(many, given=6, cores=16) == 6


def test_room_of_a_place_that_is_not_there_has_no_limit(tmp_path: Path) -> None:
    assert workers.shared_bytes(tmp_path / "none") is None
    assert workers.shared_bytes(tmp_path)
