"""How long reading pictures takes, and how many processes should do it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

# Below this time for reading all pictures once, starting workers costs more than it brings.
WORKERS_WORTH_SECONDS = 20.0
MAX_WORKERS = 8


def usable_cores() -> int:
    """Cores that this process may run on, which containers and job schedulers restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reading_seconds(paths: Sequence[Path]) -> float:
    """About how long one core needs to decode and transform these files, from 32 of their sizes."""
    step = max(1, len(paths) // 32)
    sizes = [path.stat().st_size for path in paths[::step] if path.exists()]
    mean_size = sum(sizes) / max(1, len(sizes))
    # Measured: 1.5 ms for what does not depend on the size, and 8 ns a byte of JPEG.
    return len(paths) * (0.0015 + 8e-9 * mean_size)


def choose_num_workers(paths: Sequence[Path], *, cores: int | None = None) -> int:
    """Reading processes for a pass over these files.

    None where reading everything once takes less than 20 s, for starting processes takes seconds;
    otherwise one a core beside an accelerator, one for every two cores beside the processor alone.
    """
    cores = usable_cores() if cores is None else cores
    if cores < 2 or reading_seconds(paths) < WORKERS_WORTH_SECONDS:
        return 0
    return min(MAX_WORKERS, cores if torch.accelerator.is_available() else cores // 2)
