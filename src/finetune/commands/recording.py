"""What a fit leaves in its run folder beside the checkpoints, and says of its folder of images."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.terminal import shown_in_one_line
from finetune.files import write_text

if TYPE_CHECKING:
    from finetune.data.findings import Finding
    from finetune.data.folder import LabelledImage
    from finetune.training.model_selection import Candidate

MOST_ERRORS = 5  # told of a folder


def write_config(folder: Path, notes: Iterable[str], config: str) -> None:
    """Write ``config.yaml``, with notes that it has not yet as comments above it."""
    known = set(config.splitlines())
    comments = "".join(f"# {line}\n" for line in notes if f"# {line}" not in known)
    write_text(folder / "config.yaml", comments + config)


def notes_of(folder: Path) -> list[str]:
    """The notes of the ``config.yaml`` that is there."""
    lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in itertools.takewhile(_is_note, lines)]


def _is_note(line: str) -> bool:
    return line.startswith("# ")


def write_figures(folder: Path, best: Candidate | None, images: Sequence[LabelledImage]) -> None:
    """Write and print what the best classifier of the fit answers.

    Args:
        folder: of the run.
        best: None where nothing was fitted.
        images: among which are those that were held out.
    """
    from finetune.commands.figure_lines import intervals_of, say_figures, say_what_they_hang_on
    from finetune.data.groups import groups_with_duplicates
    from finetune.evaluation.judge import numbered
    from finetune.training.metrics_file import write_metrics
    from finetune.training.thresholds import thresholds_of

    if best is not None and best.outputs is not None:
        thresholds = thresholds_of(best.task, best.entry)
        figures = best.task.figures(*best.outputs, thresholds)
        paths = [Path(path) for path in best.entry["val"]["paths"]]
        group_of = dict(zip((i.path for i in images), groups_with_duplicates(images), strict=True))
        groups = numbered([group_of.get(path) for path in paths])
        intervals = intervals_of(best.task, *best.outputs, groups)
        # Before anything is written: whatever the disk says.
        say_figures(best.task, "val", figures, intervals, len(paths))
        if thresholds is not None:
            print("thresholds were chosen on these images: what is decided by them flatters")
        say_what_they_hang_on(best.task, *best.outputs, groups, paths)
        out_of_fold = {"answers": "out of fold"} if "refitted" in best.facts else {}
        write_metrics(folder, "val", {**figures, **out_of_fold})


def say_what_lies_where(folder: Path) -> None:
    """Name the files of a run, and what may be next."""
    from finetune.commands.runs import contents

    print(f"\n{folder}:")
    for path, meaning in contents(folder):
        print(f"  {path.relative_to(folder)!s:<27}  {meaning}")
    best = folder / "checkpoints" / "best.ckpt"
    print(f"\nnext: finetune predict {best} IMAGE_OR_FOLDER...")


def data_errors(findings: Sequence[Finding], root: object) -> list[str]:
    """What would make a figure wrong, such as a leak, and what nobody uses; it stops no fit."""
    errors = [finding for finding in findings if finding.severity == "error"]
    lines = [
        shown_in_one_line(f"! {finding.path}: {finding.problem}")
        for finding in errors[:MOST_ERRORS]
    ]
    if len(errors) > MOST_ERRORS:
        lines.append(f"! and {len(errors) - MOST_ERRORS} more")
    missed = [each for each in findings if each.kind == "unused" and each.severity == "warning"]
    lines += [f"! {number} {what}" for what, number in Counter(f.problem for f in missed).items()]
    return [*lines, f"! see finetune check {root}"] if lines else []
