"""Members of a group at the same time, one on each accelerator, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from finetune.processes import PARENT

Place = TypeVar("Place")
Outcome = TypeVar("Outcome")


def device_options(arguments: Sequence[str]) -> list[list[str]]:
    """The options that give a member an accelerator of its own, one entry an accelerator.

    One entry without options, for members that follow each other, where there are not several or
    where the settings say which are to be used.
    """
    from finetune.runtime import accelerator_count

    count = accelerator_count()
    if count < 2:
        return [[]]
    from finetune.commands.trainer import FinetuneCLI

    trainer = FinetuneCLI("fit", arguments, joins=False).config.trainer
    if trainer.accelerator == "cpu" or trainer.devices != "auto":
        return [[]]
    return [[f"--trainer.devices=[{number}]"] for number in range(count)]


def fits_on_cpu(arguments: Sequence[str]) -> bool:
    """Whether the settings leave accelerators alone."""
    from finetune.commands.trainer import FinetuneCLI

    return bool(FinetuneCLI("fit", arguments, joins=False).config.trainer.accelerator == "cpu")


def run_side_by_side(
    jobs: Mapping[str, Callable[[Place], Outcome]], places: Sequence[Place]
) -> dict[str, Outcome]:
    """Run every job on a place that is free, one at a time on each; outcomes by the jobs' names."""
    free: SimpleQueue[Place] = SimpleQueue()
    for place in places:
        free.put(place)

    def run(job: Callable[[Place], Outcome]) -> Outcome:
        place = free.get()
        try:
            return job(place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        return dict(zip(jobs, pool.map(run, jobs.values()), strict=True))


def fit_in_a_process(name: str, arguments: Sequence[str]) -> str | None:
    """Fit one member, its lines printed behind its name; why it failed, or None.

    The installed package is run, never a ``finetune.py`` of the working directory; so are the
    processes that the member starts itself.
    """
    said = ""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "finetune", "fit", *arguments],
        env={**os.environ, "PYTHONSAFEPATH": "1", PARENT: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{name}: {line}", end="", flush=True)
            said = line.strip() or said
    return None if process.returncode == 0 else said.removeprefix("finetune: ")
