"""One process a device, started once, above everything that a verb does.

torchrun's own launcher starts the command again for each device, watches over the processes, and
ends all of them within seconds of the first that fails. So a command that starts its processes and
one that ``torchrun`` or SLURM has started take the same way.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from finetune.commands.terminal import HushedText
from finetune.processes import PARENT, SECONDS_TO_END, STARTED_BY_US, own_place, started_by_us

INTERRUPTED, FAILED = 130, 1


def run_in_processes(count: int, arguments: Sequence[str]) -> int:
    """Run ``finetune`` with these arguments in so many processes of this machine.

    Returns:
        The exit code of the command; where a process was killed, a line says so.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="finetune",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_END,
    )
    sys.stdout.flush()
    try:
        with _environment():
            elastic_launch(config, sys.executable)("-m", "finetune", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:  # it has said itself why
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        print(
            f"finetune: Expected {count} processes to the end, found that process {rank} was ended "
            f"by {name}, and have stopped the others; where the system did it, memory was short: "
            "take smaller batches or fewer devices. The checkpoints are kept.",
            file=sys.stderr,
        )
        return FAILED
    except SignalException:
        return INTERRUPTED
    return 0


def one_of_several(run: Callable[[], int]) -> int:
    """Run a verb as one of the processes that share it: the first alone prints."""
    if not own_place().launched:
        return run()
    if own_place().rank == 0:
        code = run()
    else:
        warnings.simplefilter("ignore")
        with redirect_stdout(HushedText(sys.stdout)):
            code = run()
    if code == 0:  # after a failure the others are not there to part from
        from finetune.runtime import part

        part()
    return code


def say_failure(line: str, error: BaseException) -> None:
    """Say on standard error why a verb ends: of several processes, the first that fails does."""
    if own_place().launched:
        from finetune.runtime import lost_another, speaks_of_failure

        if lost_another(error):
            if started_by_us():
                return  # who watches over all of them says how that one ended
            line = (
                "finetune: Expected all processes to the end, found that another one has gone; "
                "what it or its launcher says tells why. The checkpoints are kept."
            )
        if not speaks_of_failure():
            return
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _environment() -> Iterator[None]:
    """What the processes inherit.

    They import from the working directory only where this process does. So a ``finetune.py`` that
    lies there is never run, and a module of ``--imports`` is found in all processes or in none.
    """
    added = {STARTED_BY_US: "1", PARENT: str(os.getpid())}
    if not {"", os.getcwd()} & set(sys.path):
        added["PYTHONSAFEPATH"] = "1"
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
