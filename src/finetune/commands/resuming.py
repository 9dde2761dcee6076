"""Going on with an earlier fit: its settings, its folder, its best checkpoint, its log."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune.commands.parsing import take
from finetune.errors import UsageError


def resumed_arguments(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """``--resume RUN`` as the run's own settings and last checkpoint, and the run folder.

    Options beside it win over the run's settings.

    Raises:
        UsageError: the folder is no run that can be gone on with.
    """
    rest, value = take(arguments, "--resume")
    if value is None:
        return rest, None
    run = Path(value)
    last = run / "checkpoints" / "last.ckpt"
    if not value or not last.is_file() or not (run / "config.yaml").is_file():
        raise UsageError(
            f"Expected a run folder with config.yaml and checkpoints/last.ckpt after "
            f"--resume, found {value or 'nothing'}; give runs/NAME-N."
        )
    if os.path.realpath(run) != os.path.abspath(run):  # a link, which the fit may move
        run = run.resolve()
        last = run / "checkpoints" / "last.ckpt"
    return ["--config", str(run / "config.yaml"), "--ckpt_path", str(last), *rest], run


def copy_best(source: Path, target: Path) -> None:
    """Take the best checkpoint along into a new run folder."""
    best = source / "best.ckpt"
    if source.absolute() != target.absolute() and best.is_file():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(best, target / "best.ckpt")


@contextmanager
def keep_earlier_epochs(folder: Path) -> Iterator[None]:
    """Put the rows that ``metrics.csv`` had before in front of those written meanwhile."""
    log = folder / "metrics.csv"
    earlier = _rows(log)
    log.unlink(missing_ok=True)
    try:
        yield
    finally:
        later = _rows(log)
        if earlier:
            columns = list(dict.fromkeys(name for row in [*earlier, *later] for name in row))
            beside = log.with_name(".metrics.csv")
            with beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows([*earlier, *later])
            beside.replace(log)


def _rows(log: Path) -> list[dict[str, str]]:
    if not log.is_file():
        return []
    with log.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
