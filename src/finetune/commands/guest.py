"""A command's work inside a caller's process, which stays as it was."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout

from finetune.commands.terminal import HushedText
from finetune.errors import UsageError
from finetune.long_steps import shown_steps

Where = str | os.PathLike[str]


def each_of(given: Where | Sequence[Where]) -> list[str]:
    """Several paths, or one alone, as texts."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return [os.fspath(each) for each in several]


# Random numbers, warnings and the environment are the whole process's: a second thread waits.
_TURN = threading.RLock()


@contextmanager
def as_guest(*, quiet: bool = False) -> Iterator[None]:
    """Give back random states, environment, warnings and switches as they were found.

    Args:
        quiet: print nothing; what other threads print is shown.

    Raises:
        UsageError: what Lightning calls a misconfiguration, in its words.
    """
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from finetune.commands.trainer import quiet_libraries
    from finetune.runtime import cuda_in_use

    with _TURN, ExitStack() as stack:
        stack.callback(_restore_environment, dict(os.environ))
        for name in ("lightning.pytorch", "lightning.fabric"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
        _keep_random_states(stack, on_gpus=cuda_in_use())
        stack.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(shown_steps(not quiet))
        quiet_libraries()
        if quiet:
            stack.enter_context(redirect_stdout(HushedText(sys.stdout)))
        try:
            yield
        except MisconfigurationException as error:
            raise UsageError(" ".join(str(error).split())) from error


def _keep_random_states(stack: ExitStack, *, on_gpus: bool) -> None:
    from lightning.pytorch.utilities.seed import isolate_rng

    isolated = isolate_rng(include_cuda=on_gpus)
    isolated.__enter__()
    # Not as a context: after an exception it would give nothing back.
    stack.callback(isolated.__exit__, None, None, None)


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
