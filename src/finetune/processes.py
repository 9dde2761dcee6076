"""The processes that share one command, as whoever started them says; nothing heavy is imported.

``torchrun`` starts them, or SLURM's ``srun``, or :mod:`finetune.commands.launch`, by torchrun's own
machinery, for several devices of one machine. Nobody else reads their environment.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from finetune.errors import UsageError

# Set by our own launcher, which says itself why a process was killed.
STARTED_BY_US = "FINETUNE_STARTED_PROCESSES"
PARENT = "FINETUNE_PARENT"  # set by whoever of us starts processes: its own number
SECONDS_TO_END = 10  # in good order, before what is left is killed
FEW_PROCESSES = 8  # that any machine can bear, however few cores it has


@dataclass(frozen=True, slots=True)
class Place:
    """One process among all of its command.

    Attributes:
        rank: its number among all, from 0.
        world_size: how many there are, on all machines together.
        local_rank: its number among those of its machine, from 0.
        local_world_size: how many its machine has.
        launched: whether all were started by a launcher that has told them how to meet.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False


class ProcessesNeeded(UsageError):
    """Several devices are asked for, each of which needs a process; ``finetune`` starts them.

    Attributes:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(
            f"Expected one device in a process that runs already, found that {count} are asked "
            "for; run the finetune command, which starts a process for each, or give devices=1."
        )
        self.count = count


def refusal_of_one(count: int) -> UsageError:
    """Why one process alone does not do: so many are needed, or more than this machine can bear."""
    most = max(FEW_PROCESSES, os.cpu_count() or 1)
    if count <= most:
        return ProcessesNeeded(count)
    return UsageError(
        f"Expected at most {most} processes on this machine, found --trainer.devices {count}; give "
        "one a core at most."
    )


def own_place(environment: Mapping[str, str] | None = None) -> Place:
    """This process's place, from its environment; alone where nobody says otherwise.

    torchrun comes first, for it runs within SLURM's jobs too. Of SLURM only what ``srun`` says of
    a step counts: the batch script itself is one process, however many tasks the job may have.
    """
    found = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in found:
        return Place(
            int(found["RANK"]),
            int(found["WORLD_SIZE"]),
            int(found["LOCAL_RANK"]),
            int(found["LOCAL_WORLD_SIZE"]),
            launched=True,
        )
    if int(found.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_LOCALID" in found:
        per_node = re.match(r"\d+", found.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return Place(
            int(found["SLURM_PROCID"]),
            int(found["SLURM_STEP_NUM_TASKS"]),
            int(found["SLURM_LOCALID"]),
            int(per_node[0]) if per_node else 1,
            launched=True,
        )
    if "LOCAL_RANK" in found:  # a script that Lightning runs again for each of its devices
        here, all_of_them = int(found["LOCAL_RANK"]), int(found.get("WORLD_SIZE", "1"))
        on_this_machine = int(found.get("LOCAL_WORLD_SIZE", all_of_them))
        return Place(int(found.get("RANK", here)), all_of_them, here, on_this_machine)
    return Place()


def started_by_us() -> bool:
    """Whether our own launcher watches over this process."""
    return STARTED_BY_US in os.environ


def end_with_parent() -> None:
    """End when the process of ours that started this one has gone, also where it was killed.

    Without it, processes whose launcher got SIGKILL would train on, and hold their devices.
    """
    parent = os.getppid()
    if os.environ.get(PARENT) != str(parent):  # started by others, who may want it to go on
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # a fit then ends in good order
        time.sleep(SECONDS_TO_END)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
