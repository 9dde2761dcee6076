"""Where work is done: on which device, and by which of several processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from finetune.errors import UsageError

Module = TypeVar("Module", bound=nn.Module)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Runtime:
    """One process's place in the work, chosen alike for every verb.

    Networks and batches live on its device. Outputs come back to the CPU, where pooling,
    calibration and selection are float64: none of that goes to a device, which may not have it.

    Attributes:
        device: of this process.
        rank: of this process among all, from 0.
    """

    device: torch.device = CPU
    rank: int = 0

    @classmethod
    def chosen(cls, accelerator: object = "auto", devices: object = "auto") -> Runtime:
        """The place that Lightning's Trainer would give this process.

        Args:
            accelerator: ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``; ``auto`` takes the
                accelerator that is there, else the CPU.
            devices: how many or which, as a Trainer takes them; each process has its own.

        Raises:
            UsageError: an accelerator that is not there, or that is unknown.
        """
        return cls(device=_device(accelerator, devices), rank=process_rank())

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def place(self, module: Module) -> Module:
        """The module itself, moved to the device."""
        return module.to(self.device)


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
    """This process's number among all, as Lightning knows it; its Trainers keep it up to date."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", None) or 0)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors live; the CPU where it has none."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return CPU


def _device(accelerator: object, devices: Any) -> torch.device:
    from lightning.fabric.accelerators.cuda import CUDAAccelerator
    from lightning.fabric.accelerators.mps import MPSAccelerator

    kinds = {"mps": MPSAccelerator, "cuda": CUDAAccelerator}  # in Lightning's order
    match accelerator:
        case "cpu":
            return CPU
        case "auto" | "gpu":
            wanted = [*kinds]
        case "mps" | "cuda":
            wanted = [str(accelerator)]
        case _:
            raise UsageError(
                f"Expected an accelerator out of auto, cpu, gpu, cuda and mps, "
                f"found {accelerator!r}."
            )
    for name in wanted:
        if kinds[name].is_available():
            numbers = kinds[name].parse_devices(-1 if devices == "auto" else devices) or [0]
            own = int(os.environ.get("LOCAL_RANK", "0"))
            return torch.device(name, numbers[own % len(numbers)])
    if accelerator == "auto":
        return CPU
    raise UsageError(
        f"Expected a device for the accelerator {accelerator}, found none that PyTorch can use "
        "here; take auto or cpu."
    )
