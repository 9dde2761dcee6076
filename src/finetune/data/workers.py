"""How long reading images takes, and how many processes should do it."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.data.image_bytes import image_size
from finetune.processes import own_place

# Below this time for reading all images once, starting workers costs more than it brings.
WORKERS_WORTH_SECONDS = 20.0
MAX_WORKERS = 8
BATCH_BYTES = 32 * 3 * 224 * 224  # of a usual batch, where nobody says how large it is
BATCHES_A_WORKER = 3  # in shared memory: two that PyTorch reads ahead, and one in use


def usable_cores() -> int:
    """Cores for this process: its share of those that affinity and the container's quota leave."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores // own_place().local_world_size)


def limit_threads() -> None:
    """Let PyTorch use no more threads than a quota and processes beside this one leave.

    It sees the affinity alone.

    Where it is not loaded yet, by the variable that it reads then: the first screen needs no torch.
    """
    if cpu_quota() is None and own_place().local_world_size == 1:
        return
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        return
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(given), usable_cores()) if given.isdecimal() else usable_cores()
    os.environ["OMP_NUM_THREADS"] = str(max(threads, 1))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores' time the control group may use (Linux, versions 1 and 2); None: all.

    The least of the group's own and of those above it, as the kernel enforces it.

    Args:
        root: below which ``proc`` and ``sys`` lie.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in groups:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = mount / place.lstrip("/")
        # In a container the place may be the host's; what is mounted is the container's own.
        folders = [own, *own.parents] if own.is_dir() else [mount]
        quotas += [_quota_of(each) for each in folders if each.is_relative_to(mount)]
    return min((quota for quota in quotas if quota is not None), default=None)


def reading_seconds(paths: Sequence[Path]) -> float:
    """About how long one core needs to decode and transform these files, from 32 of their sizes."""
    step = max(1, len(paths) // 32)
    sizes = [size for path in paths[::step] if (size := image_size(path))]
    mean_size = sum(sizes) / max(1, len(sizes))
    # Measured: 1.5 ms for what does not depend on the size, and 8 ns a byte of JPEG.
    return len(paths) * (0.0015 + 8e-9 * mean_size)


def choose_num_workers(
    paths: Sequence[Path],
    given: int | None = None,
    *,
    cores: int | None = None,
    batch_bytes: int = BATCH_BYTES,
) -> int:
    """Reading processes for a pass over these files, unless their number is given.

    None where reading everything once takes less than 20 s, for starting processes takes seconds;
    otherwise one a core beside an accelerator, one for every two cores beside the processor alone,
    and no more than have room for their batches in shared memory: a container has 64 MB of it.
    """
    from finetune.runtime import has_accelerator

    if given is not None:
        return given
    cores = usable_cores() if cores is None else cores
    if cores < 2 or reading_seconds(paths) < WORKERS_WORTH_SECONDS:
        return 0
    wanted = min(MAX_WORKERS, cores if has_accelerator() else cores // 2)
    room = shared_bytes()
    return wanted if room is None else min(wanted, room // (BATCHES_A_WORKER * batch_bytes))


def shared_bytes(place: Path = Path("/dev/shm")) -> int | None:
    """What is free of the memory by which processes hand over batches; None: it has no limit."""
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _quota_of(group: Path) -> float | None:
    """What one group's folder says; None where nothing is limited."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((group / name).read_text(encoding="utf-8").strip() for name in names)
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
