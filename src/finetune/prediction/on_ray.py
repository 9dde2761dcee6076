"""Parts answered by actors of Ray, each with a network of its own, on the nodes of a cluster.

Ray Data hands out the blocks, starts actors anew where a node has gone, and gives their blocks to
others. What an actor writes is what one process writes here, under the same name; so a block that
was answered twice is there once.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune import errors
from finetune.errors import UsageError
from finetune.files import write_bytes
from finetune.prediction.parts_answerer import PartsAnswerer
from finetune.runtime import Runtime
from finetune.spec.answer_settings import AnswerSettings
from finetune.spec.protocols import ImageBlock

# Ray runs whatever reaches its ports: those of a cluster of our own are this machine's alone.
_HERE = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
STARTS = 3  # tries to start one here
CORES_AN_ACTOR = 4  # where no accelerator is: a forward pass gains little from more


def answers_on_ray(
    checkpoint: Path,
    folder: str,
    settings: AnswerSettings,
    pending: Iterable[tuple[int, ImageBlock]],
    address: str | None,
) -> Iterator[object]:
    """Each part as it is written.

    Args:
        checkpoint: sent to the actors; what images and parts are called, they have to reach.
        folder: of the parts.
        settings: ``devices`` is the number of actors; they share the cluster's accelerators.
        pending: the blocks.
        address: of a cluster; None starts one on this machine, which ends with the work.

    Raises:
        UsageError: no cluster there, or no number of actors.
        ImageError, DataError, OutputError: as an actor met them.
    """
    blocks = [{"number": number, "block": block} for number, block in pending]
    if not blocks:
        return
    with cluster(address) as ray:
        on_cpu = settings.accelerator == "cpu"
        actors, of_each = shares(settings.devices, ray.nodes(), blocks=len(blocks), on_cpu=on_cpu)
        options = {
            "content": ray.put(checkpoint.read_bytes()),
            "folder": folder,
            "settings": settings,
            "start": os.getcwd(),
        }
        answered = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            fn_constructor_kwargs=options,
            **of_each,
        )
        for row in answered.iter_rows():
            if row["kind"]:
                raise getattr(errors, row["kind"])(row["failure"])
            yield row["number"]


class _Actor:
    """One network on its device, in a process of its own."""

    def __init__(self, content: Any, folder: str, settings: AnswerSettings, start: str) -> None:
        import ray

        with suppress(OSError):  # another machine may not have it; then paths are absolute
            os.chdir(start)
        with tempfile.TemporaryDirectory(prefix="finetune-") as place:
            checkpoint = Path(place, "sent.ckpt")
            write_bytes(checkpoint, ray.get(content))
            runtime = Runtime.chosen(settings.accelerator)
            self._answer = PartsAnswerer(checkpoint, folder, settings, runtime)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of one block; what a user can mend is handed back, for it is no fault of Ray."""
        number, kind, failure = int(batch["number"][0]), "", ""
        try:
            self._answer(number, batch["block"][0])
        except errors.FinetuneError as error:
            kind, failure = type(error).__name__, str(error)
        return {"number": [number], "kind": [kind], "failure": [failure]}


def shares(
    devices: str, nodes: Sequence[Mapping[str, Any]], *, blocks: int, on_cpu: bool
) -> tuple[int, dict[str, float]]:
    """How many actors, and how many cores and accelerators each of them has.

    Args:
        devices: how many actors, or auto: one an accelerator, else one for some cores of a node.
        nodes: of the cluster, as Ray tells them.
        blocks: of images; more actors than these would idle.
        on_cpu: leave the accelerators alone.

    Raises:
        UsageError: no number.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = 0.0 if on_cpu else sum(each.get("GPU", 0.0) for each in alive)
    cores = [each["CPU"] for each in alive if each.get("CPU")] or [1.0]
    if devices == "auto":
        actors = int(gpus) or sum(max(1, int(each) // CORES_AN_ACTOR) for each in cores)
    elif devices.isdecimal() and int(devices) > 0:
        actors = int(devices)
    else:
        raise UsageError(
            f"Expected --devices to be a number of actors with --engine ray, found {devices!r}; "
            "give one, or auto."
        )
    actors = min(actors, blocks)
    # Ray takes whole cores, or a share of one; and an actor lives on one node.
    share = sum(cores) / actors
    while share >= 1 and sum(each // int(share) for each in cores) < actors:
        share -= 1
    of_each = {"num_cpus": float(int(share)) if share >= 1 else share}
    if gpus:
        of_each["num_gpus"] = min(1.0, gpus / actors)
    return actors, of_each


@contextmanager
def cluster(address: str | None, *, members_speak: bool = False) -> Iterator[Any]:
    """Ray in touch with a cluster, quiet, and reporting to nobody.

    Args:
        address: of a cluster; None starts one on this machine, which ends with the work.
        members_speak: whether what tasks print is printed here, behind their names.

    Raises:
        UsageError: no cluster there.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # a line that two members print is printed twice
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call its makers' server
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # exceptions come all the same
    import ray
    import ray.data

    known = ray.is_initialized()
    if not known:
        _begin(ray, address, members_speak=members_speak)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield ray
    finally:
        if not known:
            ray.shutdown()


def _begin(ray: Any, address: str | None, *, members_speak: bool) -> None:
    """Be in touch with a cluster, or start one.

    Raises:
        UsageError: no cluster there.
    """
    where = {"address": address} if address else _HERE
    # Ray gives a node 30 s to start, which a busy machine may need to read its files alone.
    for tries_left in range(0 if address else STARTS - 1, -1, -1):
        try:
            ray.init(log_to_driver=members_speak, logging_level="ERROR", **where)
            return
        except Exception as error:  # of a node that starts too slowly a plain one
            ray.shutdown()
            if not tries_left:
                raise UsageError(
                    f"Expected a Ray cluster at {address or 'this machine'}, found none "
                    f"({' '.join(str(error).split())[:200]}); start one with `ray start --head`."
                ) from error
