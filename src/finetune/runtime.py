"""Where work is done: on which device, and by which of several processes.

The only module that asks PyTorch for devices and for other processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from finetune.errors import UsageError
from finetune.processes import Place, own_place, refusal_of_one

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Runtime:
    """One process's place in the work, chosen alike for every verb.

    Networks and batches live on its device. Outputs come back to the CPU, where pooling,
    calibration and selection are float64: none of that goes to a device, which may not have it.

    Several processes, one a device, run the same program on shares of the images. They are started
    once, before data is opened; the first alone writes and prints. What they tell each other goes
    through :meth:`agree`, :meth:`gather` and :meth:`barrier`, which all of them have to call.

    Attributes:
        device: of this process.
    """

    device: torch.device = CPU

    @classmethod
    def chosen(cls, accelerator: object = "auto", devices: object = "auto") -> Runtime:
        """The device that Lightning's Trainer would give this process.

        Args:
            accelerator: ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``; ``auto`` takes the
                accelerator that is there, else the CPU.
            devices: how many or which, as a Trainer takes them; each process has its own.

        Raises:
            UsageError: an accelerator that is not there, or that is unknown.
        """
        own = _devices(accelerator, devices)
        return cls(own[own_place().local_rank % len(own)])

    @classmethod
    def joined(cls, accelerator: object = "auto", devices: object = "auto") -> Runtime:
        """The same, in touch with the other processes of this command where it has several.

        Raises:
            ProcessesNeeded: several devices are asked for, and nobody has started processes.
            UsageError: as :meth:`chosen`, or other devices than there are processes.
        """
        runtime, place = cls.chosen(accelerator, devices), own_place()
        if not place.launched:
            if (count := _count(accelerator, devices)) > 1:
                raise refusal_of_one(count)
            return runtime
        devices_of_launched(accelerator, devices)  # refuses what does not fit
        if place.world_size > 1 and not distributed.is_initialized():
            _meet(place, runtime.device)
        return runtime

    @property
    def rank(self) -> int:
        """Of this process among all, from 0."""
        return process_rank()

    @property
    def world_size(self) -> int:
        """How many processes are in touch."""
        return distributed.get_world_size() if _in_touch() else 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def place(self, module: Module) -> Module:
        """The module itself, moved to the device."""
        return module.to(self.device)

    def share(self, items: Sequence[Value]) -> list[Value]:
        """What this process does of the items: every so many of them, dealt out in turn."""
        return list(items[self.rank % self.world_size :: self.world_size])

    def deal(self, items: Sequence[Value]) -> list[Value]:
        """The share of this process, where each is to have as many: the first are dealt again."""
        missing = -len(items) % self.world_size
        return self.share([*items, *items[:missing]])

    def share_of_batch(self, images: int) -> int:
        """Images a batch has in each process, of so many a step in all of them; at least 1."""
        return max(1, -(-images // self.world_size))

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks."""
        if not _in_touch():
            return [value]
        gathered: list[Any] = [None] * self.world_size
        distributed.all_gather_object(gathered, value)
        return gathered

    def agree(self, value: Callable[[], Value]) -> Value:
        """What the first process makes of it, which the others take over."""
        if not _in_touch():
            return value()
        told: list[Any] = [value() if self.is_main else None]
        distributed.broadcast_object_list(told, src=0)
        agreed: Value = told[0]
        return agreed

    def barrier(self) -> None:
        """Wait until all have come here."""
        self.gather(None)

    def equalise(self, module: nn.Module, *, parameters: bool = False) -> None:
        """Give each process the first one's buffers, which batch norm counts for itself."""
        if self.world_size > 1:
            for tensor in (*module.buffers(), *(module.parameters() if parameters else ())):
                distributed.broadcast(tensor.data, src=0)

    def trainer(self, **settings: Any) -> Any:
        """A Lightning trainer of this device alone, that logs, keeps and shows nothing."""
        from lightning import Trainer

        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        number = self.device.index or 0
        return Trainer(
            accelerator=self.device.type,
            devices=1 if self.device.type == "cpu" else [number],
            enable_progress_bar=False,
            **{**quiet, **settings},
        )


def fast_at_bf16(device: torch.device) -> str:
    """The name of a device whose matrix units multiply bfloat16 numbers; empty for any other.

    NVIDIA's from Ampere on, of compute capability 8; elsewhere it is not known to be faster.
    """
    nvidia = device.type == "cuda" and torch.version.hip is None
    if not nvidia or torch.cuda.get_device_capability(device) < (8, 0):
        return ""
    return torch.cuda.get_device_name(device)


def use_fast_float32(device: torch.device) -> None:
    """Let what stays float32 on an NVIDIA GPU be multiplied in TF32: 10 bits behind the point."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def process_rank() -> int:
    """This process's number among all, as its launcher or a Trainer of Lightning's says."""
    if _in_touch():
        return distributed.get_rank()
    return own_place().rank


def devices_of_launched(accelerator: object, devices: Any) -> tuple[Any, int]:
    """What a Trainer is to be told of devices and machines where a launcher has decided.

    Raises:
        UsageError: other devices than the launcher has started processes.
    """
    place = own_place()
    if not place.launched:
        return devices, 1
    here = place.local_world_size
    if devices in ("auto", -1, "-1"):
        devices = here
    elif (count := _count(accelerator, devices)) != here:
        raise UsageError(
            f"Expected --trainer.devices {here}, since so many processes were started on this "
            f"machine, found {count}; leave it out."
        )
    return devices, place.world_size // here


def has_accelerator() -> bool:
    """Whether there is any device but the CPU."""
    return torch.accelerator.is_available()


def can_pin_memory() -> bool:
    """Whether copies to a device gain by pinned memory; Apple's warn that they have none."""
    device = torch.accelerator.current_accelerator() if has_accelerator() else None
    return device is not None and device.type != "mps"


def accelerator_count() -> int:
    """How many devices but the CPU there are."""
    return torch.accelerator.device_count()


def cuda_in_use() -> bool:
    """Whether this process has begun to use CUDA."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def device_memory(device: torch.device) -> int | None:
    """Bytes that a device has in all; None where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return None


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors live; the CPU where it has none."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), CPU)


_FAILED = "finetune/failed"
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
_meeting_point: list[Any] = []  # a store of torch.distributed, once there is one


def speaks_of_failure() -> bool:
    """Whether this process is to say why all end: the first one that fails, and it alone."""
    if not own_place().launched:
        return True
    try:
        return _store().add(_FAILED, 1) == 1
    except Exception:  # the first process kept it, and has gone
        return process_rank() == 0


def lost_another(error: BaseException) -> bool:
    """Whether an error only says that another process has gone in the middle of the work."""
    words = str(error)
    return _in_touch() and any(each in words for each in _LOST)


def part() -> None:
    """Leave the other processes in good order, once all work is done."""
    if _meeting_point and distributed.is_initialized():
        distributed.destroy_process_group()


def _in_touch() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _meet(place: Place, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("work", _store()),
        rank=place.rank,
        world_size=place.world_size,
    )


def _store() -> Any:
    """Where all processes leave word for each other; torchrun keeps one for them."""
    if not _meeting_point:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        place = own_place()
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        if not elastic:
            slurm = SLURMEnvironment(auto_requeue=False)
            os.environ["MASTER_ADDR"] = slurm.main_address
            os.environ["MASTER_PORT"] = str(slurm.main_port)
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=not elastic and place.rank == 0,
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _meeting_point.append(PrefixStore(f"finetune {attempt}", store))
    return _meeting_point[0]


def _count(accelerator: object, devices: Any) -> int:
    """How many processes a machine needs, one a device."""
    from lightning.fabric.accelerators.cpu import CPUAccelerator

    if _devices(accelerator, "auto") != [CPU]:
        return len(_devices(accelerator, devices))
    return 1 if devices == "auto" else _parsed(CPUAccelerator.parse_devices, devices)


def _parsed(parse: Callable[[Any], Value], devices: Any) -> Value:
    """What Lightning makes of ``--trainer.devices``, which it refuses in several ways."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    with suppress(MisconfigurationException, TypeError, ValueError):
        if parsed := parse(devices):
            return parsed
    raise UsageError(
        f"Expected devices to be auto, a number from 1 or numbers of devices that are here, "
        f"found {devices!r}."
    )


def _devices(accelerator: object, devices: Any) -> list[torch.device]:
    """Those that a Trainer would take; of CPUs there is one."""
    from lightning.fabric.accelerators.cuda import CUDAAccelerator
    from lightning.fabric.accelerators.mps import MPSAccelerator

    kinds = {"mps": MPSAccelerator, "cuda": CUDAAccelerator}  # in Lightning's order
    match accelerator:
        case "cpu":
            return [CPU]
        case "auto" | "gpu":
            wanted = [*kinds]
        case "mps" | "cuda":
            wanted = [str(accelerator)]
        case _:
            kinds_known = "auto, cpu, gpu, cuda and mps"
            raise UsageError(
                f"Expected an accelerator out of {kinds_known}, found {accelerator!r}."
            )
    for name in wanted:
        if kinds[name].is_available():
            wished = -1 if devices == "auto" else devices
            numbers = _parsed(kinds[name].parse_devices, wished)
            return [torch.device(name, number) for number in numbers]
    if accelerator == "auto":
        return [CPU]
    raise UsageError(
        f"Expected a device for the accelerator {accelerator}, found none that PyTorch can use "
        "here; take auto or cpu."
    )
