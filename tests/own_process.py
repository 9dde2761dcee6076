"""``finetune`` in a process of its own, which may be killed.

It is forked from a server that has imported what takes seconds and has computed nothing: a copy of
the tests' own process may hold threads of torch's that no fork outlives.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess

from finetune.cli import main


def started(function: Callable[..., int], *arguments: object) -> BaseProcess:
    """A process that ends with the function's exit code, in this folder; it prints nothing.

    Args:
        function: of a module.
        arguments: that can be pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "finetune.commands.fit", "finetune.commands.predict"])
    place = os.getcwd(), dict(os.environ)
    process = context.Process(target=_run, args=(function, arguments, *place))
    process.start()
    return process


def exit_code(process: BaseProcess) -> int:
    """When it has ended; of one that was ended, minus the signal's number."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def killed_at_rename(number: int, arguments: Sequence[str]) -> int:
    """The exit code of the command, where SIGKILL comes instead of a checkpoint's rename.

    Args:
        number: how many checkpoints are renamed before.
        arguments: of the command.
    """
    return exit_code(started(_until_rename, number, arguments))


def _run(
    function: Callable[..., int],
    arguments: Sequence[object],
    folder: str,
    environment: Mapping[str, str],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os._exit(function(*arguments))


def _until_rename(number: int, arguments: Sequence[str]) -> int:
    rename, done = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal done
        if str(target).endswith(".ckpt"):
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    return main(arguments)
