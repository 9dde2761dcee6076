"""Run folders: every run gets a new one, ``runs/<name>-<n>``, and nothing is overwritten."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from finetune.commands.outputs import Output
from finetune.errors import OutputError, UsageError
from finetune.files import write_link, write_text
from finetune.training.metrics_file import read_metrics, write_metrics


def new_run_folder(runs: Path, name: str, *, images: str | os.PathLike[str] | None = None) -> Path:
    """Create the next free ``<runs>/<name>-<n>``, also when several processes ask at once.

    Args:
        runs: made where it is not there.
        name: of the run.
        images: the folder of images, below which there are no runs: they hold images too.

    Raises:
        UsageError: the name is no plain one, or the folder cannot be made.
    """
    if not name or not name.isprintable() or name != Path(name).name or name.startswith("."):
        raise UsageError(f"Expected a plain run name, found {name!r}; leave out slashes and dots.")
    Output(runs, "--runs", replaces=False, is_folder=True).keep_off(images=[images])
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Expected a folder for runs at {runs}, found that it cannot be made "
            f"({error.strerror}); name another with --runs."
        ) from error
    for number in count(1):
        folder = runs / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() does not end")


def link_latest(folder: Path) -> None:
    """Point ``runs/latest`` at the folder; where there are no links, ``latest.txt`` names it.

    Only what is ours is replaced: a link to a sibling folder, a file that names one. Anything else
    that is called so stays, and a line says it.
    """
    folder = Path(os.path.abspath(folder))
    link, note = folder.parent / "latest", folder.parent / "latest.txt"
    if os.path.lexists(link) and not _is_our_link(link):
        print(f"{link} is not a link to a run: it stays as it is")
        return
    try:
        write_link(link, folder.name)
    except OSError:  # such as Windows without the right to make links
        if not os.path.lexists(note) or _is_our_note(note):
            with suppress(OutputError):  # a full disk; the fit is whole without it
                write_text(note, f"{NEWEST}{folder.name}\n")


NEWEST = "the newest run of finetune: "


def _is_our_link(link: Path) -> bool:
    """Whether it is a link to a run beside it, one that has been removed, or itself."""
    if not link.is_symlink() or os.path.basename(target := os.readlink(link)) != target:
        return False
    run = link.with_name(target)
    return not run.exists() or any((run / name).exists() for name in ("config.yaml", "checkpoints"))


def _is_our_note(note: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return not note.is_symlink() and note.read_text(encoding="utf-8").startswith(NEWEST)
    return False


def run_folder_of(checkpoint: str | Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    parent = Path(checkpoint).absolute().parent
    if parent.name == "checkpoints" and (parent.parent / "config.yaml").is_file():
        return parent.parent
    return None


def free_stage(folder: Path, stage: str, images: str) -> str:
    """``stage``, or ``stage-<folder>`` if ``metrics.json`` has it about other images."""
    name = re.sub(r"[^\w.]+", "-", Path(images).name).strip("-")  # of shards it is a pattern
    for count_up in count(1):
        suffix = "" if count_up == 1 else f"-{name}"
        suffix += "" if count_up < 3 else f"-{count_up - 1}"
        known = read_metrics(folder).get(stage + suffix, {})
        if known.get("images", images) == images:
            return stage + suffix
    raise AssertionError("count() does not end")


@contextmanager
def timed_fit(folder: Path) -> Iterator[None]:
    """Add the seconds within to those that ``metrics.json`` has, also when the fit is stopped.

    What a killed process spent is not known. Without a checkpoint there is nothing to resume,
    and nothing is written.
    """
    earlier = float(read_metrics(folder).get("fit", {}).get("seconds", 0.0))
    started, finished = time.monotonic(), False
    try:
        yield
        finished = True
    finally:
        if any((folder / "checkpoints").glob("*.ckpt")):
            seconds = round(earlier + time.monotonic() - started, 2)
            write_metrics(folder, "fit", {"seconds": seconds, "finished": finished})


CONTENTS = {
    "checkpoints/best.ckpt": "the best epoch; needs nothing else",
    "checkpoints/phase2.ckpt": "fine-tuned, but not clearly better; for ensembles",
    "checkpoints/snapshot1.ckpt": "the end of the first cycle; for ensembles, as the others",
    "checkpoints/last.ckpt": "the last epoch; a fit can be resumed from it",
    "config.yaml": "every setting; finetune fit --config makes the same run again",
    "split.csv": "which image went into train, val or test",
    "bad_images.csv": "files that were left out, with the reason",
    "metrics.csv": "the figures of every epoch",
    "metrics.json": "the final figures",
    "batch.png": "a batch as the network sees it",
    "report/index.html": "the report page",
    "update.html": "the run that was updated and this one, on its test images",
    "predictions.csv": "the answer for every test image",
}


def contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """What lies in a run folder, with a word about each file."""
    for name, meaning in CONTENTS.items():
        if (folder / name).exists():
            yield folder / name, meaning
