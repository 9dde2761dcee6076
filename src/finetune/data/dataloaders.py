"""The one place where DataLoaders are made."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from torch.utils.data import DataLoader

from finetune.data.dataset import ImageDataset
from finetune.data.workers import choose_num_workers
from finetune.errors import UsageError
from finetune.runtime import can_pin_memory


def make_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    num_workers: int | None,
    seed: int,
    **options: Any,
) -> DataLoader[Any]:
    """A loader whose use leaves the global random state as it was.

    Args:
        dataset: the images.
        batch_size: images a batch.
        num_workers: reading processes; None chooses from cores and data size.
        seed: of what the loader itself draws.
        options: anything else that a DataLoader takes.

    Raises:
        UsageError: less than no workers.
    """
    if num_workers is not None and num_workers < 0:
        raise UsageError(
            f"Expected num_workers of at least 0, found {num_workers}; 0 reads in this process."
        )
    workers = choose_num_workers(dataset.paths) if num_workers is None else num_workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=can_pin_memory(),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def silence_worker_advice() -> None:
    """Switch off Lightning's advice to use more workers: ours are chosen from the data's size.

    To be called when a fit begins, not at import, for the filter is the whole process's.
    """
    warnings.filterwarnings(
        "ignore", message=".*does not have many workers.*", category=PossibleUserWarning
    )
