"""How the threads of OpenMP wait for each other: politely where other processes need the cores.

By default they spin while they wait, a tenth of a second at a time. Where two fits share the cores,
a thread spins for one that has no core, and both take four to seven times as long. Read by OpenMP
when torch is loaded, so it is set before; it is for the command alone, whose process it changes.
"""

from __future__ import annotations

import os
from pathlib import Path

BUSY = 0.7  # processes that ran on average over the last minute
# Turns of the loop in which a thread waits before it sleeps: enough for one fit alone to lose
# nothing, few enough for two at once (docs/benchmarks.md).
SHORT_SPIN = "10000"
_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_politely(*, always: bool = False) -> None:
    """Let waiting threads sleep: at once where the machine is busy, soon where it is free.

    What the user has set wins.

    Args:
        always: at once whatever the machine does, for processes that are started side by side.
    """
    if any(name in os.environ for name in _OWN):
        return
    if always or machine_is_busy():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = SHORT_SPIN


def machine_is_busy() -> bool:
    """Whether other processes are running, where the system tells."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        running = 1
    try:
        return running > 1 or os.getloadavg()[0] > BUSY
    except OSError:
        return running > 1
