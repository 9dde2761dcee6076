"""Who a process is among all is asked in one place."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import finetune
from finetune.commands import launch, parallel_fits
from finetune.commands.trainer_options import check_strategy
from finetune.errors import UsageError
from finetune.processes import PARENT, Place, ProcessesNeeded, own_place
from finetune.runtime import Runtime, devices_of_launched

PACKAGE = Path(finetune.__file__).parent
OWNERS = {
    "runtime.py": "asks PyTorch",
    "processes.py": "asks the environment, without PyTorch",
    "commands/launch.py": "starts processes, by torchrun's launcher",
}
ASKED = ("torch.accelerator", "torch.cuda", "torch.distributed", "rank_zero_only")
NAMED = {"LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8"}
TORCHRUN |= {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


def questions(path: Path) -> set[str]:
    """What a module asks about devices and processes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found |= {name for name in ASKED if ast.unparse(node).startswith(name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            found |= {name for name in ASKED if any(name in each for each in names)}
        elif isinstance(node, ast.Constant) and node.value in NAMED:
            found.add(str(node.value))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_the_runtime_asks_for_devices_and_processes(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) not in OWNERS:
        assert not questions(path)


@pytest.mark.parametrize("name", OWNERS)
def test_the_walk_sees_what_the_owners_ask(name: str) -> None:
    assert questions(PACKAGE / name)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        (TORCHRUN, Place(5, 8, 1, 4, launched=True)),
        (SRUN, Place(5, 8, 1, 4, launched=True)),
        (SRUN | TORCHRUN | {"RANK": "6"}, Place(6, 8, 1, 4, launched=True)),
        # The batch script itself, and an interactive shell: one process, whatever the job has.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Place()),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Place()),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2, 1, 2)),
    ],
)
def test_a_process_knows_its_place_by_its_launcher(
    environment: dict[str, str], place: Place
) -> None:
    assert own_place(environment) == place


def test_several_devices_need_processes_that_are_not_there() -> None:
    with pytest.raises(ProcessesNeeded, match="finetune command") as raised:
        Runtime.joined("cpu", 2)
    assert raised.value.count == 2
    assert Runtime.joined("cpu", "auto").world_size == 1


def test_a_launcher_decides_how_many_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert devices_of_launched("cpu", "auto") == (4, 2)
    assert devices_of_launched("cpu", "4") == ("4", 2)
    with pytest.raises(UsageError, match=r"devices 4.*found 3"):
        devices_of_launched("cpu", 3)


@pytest.mark.parametrize(("strategy", "nodes"), [("ddp_spawn", 1), ("ddp_notebook", 1), ("ddp", 2)])
def test_nothing_starts_processes_in_the_middle(strategy: str, nodes: int) -> None:
    with pytest.raises(UsageError, match="Expected"):
        check_strategy(strategy, nodes)


def test_alone_a_process_does_and_decides_everything() -> None:
    runtime = Runtime()
    assert runtime.is_main
    assert runtime.share(range(5)) == [0, 1, 2, 3, 4]
    assert runtime.gather("x") == ["x"]
    assert runtime.agree(lambda: 3) == 3
    assert runtime.share_of_batch(7) == 7
    assert runtime.device == torch.device("cpu")


STARTED = """
import os, sys, time
from finetune.processes import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(120)
"""
STARTING = """
import os, signal, subprocess, sys
settings = {**os.environ, "FINETUNE_PARENT": sys.argv[2] or str(os.getpid())}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=settings, stdout=subprocess.PIPE)
print(child.stdout.readline().decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="a child's parent never changes there")
@pytest.mark.parametrize(("parent", "ends"), [("", True), ("1", False)])
def test_who_is_started_ends_with_a_parent_that_is_killed(parent: str, ends: bool) -> None:
    starting = [sys.executable, "-c", STARTING, STARTED, parent]
    done = subprocess.run(starting, stdout=subprocess.PIPE, text=True, timeout=60)
    child = int(done.stdout)
    last = time.monotonic() + (30 if ends else 3)  # two of its looks
    while time.monotonic() < last and _runs(child):
        time.sleep(0.1)
    assert _runs(child) != ends
    if not ends:
        os.kill(child, signal.SIGKILL)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")  # one that nobody waits for is no longer running
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_both_ways_to_start_processes_say_who_the_parent_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with launch._environment():
        assert os.environ[PARENT] == str(os.getpid())
    given: dict[str, str] = {}

    def popen(*_: object, env: dict[str, str], **__: object) -> NoReturn:
        given.update(env)
        raise InterruptedError

    monkeypatch.setattr(parallel_fits.subprocess, "Popen", popen)
    with pytest.raises(InterruptedError):
        parallel_fits.fit_in_a_process("a", [])
    assert given[PARENT] == str(os.getpid())
