"""``metrics.csv``: one row an epoch, appended as it ends, before its checkpoint is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from finetune.csv_table import own_rows
from finetune.files import append_text, write_text

Row = Mapping[str, object]
PLACE = ("phase", "epoch")  # from 0


class EpochLog(Callback):
    """Appends an epoch's figures and the learning rates at its start.

    Args:
        path: of ``metrics.csv``; earlier rows stay.
        phase: of the fit, from 0.
    """

    def __init__(self, path: Path, phase: int) -> None:
        self.path = path
        self.phase = phase
        self._rates: dict[str, float] = {}

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self._rates:
            # The first epoch here: what a killed fit has written from it on is written anew.
            cut_back(self.path, phase=self.phase, epochs=trainer.current_epoch)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._rates = {f"lr-{number}": group["lr"] for number, group in enumerate(groups, start=1)}

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        figures = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if not name.startswith("lr-")  # of Lightning's LearningRateMonitor
        }
        place = {"phase": self.phase, "epoch": trainer.current_epoch}
        append(self.path, {**place, "step": trainer.global_step - 1, **self._rates, **figures})


def append(path: Path, row: Row) -> None:
    """Add a row; the table is written anew where it has no column for a value."""
    columns = _columns(path)
    if columns and row.keys() <= set(columns):
        append_text(path, _text([row], columns))
    else:
        _write(path, [*read_rows(path), row])


def cut_back(path: Path, *, phase: int, epochs: int) -> None:
    """Leave out what a checkpoint at the end of so many epochs of a phase has not seen."""
    if path.is_file():
        _write(path, [row for row in read_rows(path) if _place(row) < (phase, epochs)])


def _columns(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def read_rows(path: Path) -> list[Row]:
    """The rows that were written whole; none where there is no table."""
    return [row for row in own_rows(path) if None not in row.values()]


def _place(row: Row) -> tuple[float, float]:
    """Phase and epoch; rows of earlier versions, which do not name both, count as the first."""
    try:
        phase, epoch = (float(str(row[name])) for name in PLACE)
    except (KeyError, ValueError):
        return (-1, -1)
    return phase, epoch


def _write(path: Path, rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    header = ",".join(columns) + "\n"
    write_text(path, header + _text(rows, columns) if rows else "")


def _text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    file = io.StringIO()
    csv.DictWriter(file, columns, restval="", lineterminator="\n").writerows(rows)
    return file.getvalue()
