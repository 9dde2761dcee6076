"""The report that a test leaves in its run, and its way to the run's tracker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetune.commands.evaluate import Judged
    from finetune.evaluation.judgement import Judgement
    from finetune.reporting.page import PageSection


def write_report_of(judged: Judged, folder: Path, name: str) -> tuple[PageSection, Path]:
    """All that is told of a test, and the page of its report in the run's folder."""
    from finetune.evaluation.judge import judge as all_figures
    from finetune.evaluation.judge import numbered
    from finetune.reporting.details import how_to_test, read_details
    from finetune.reporting.report import section_of, write_section

    evaluation = all_figures(
        judged.task,
        judged.labels.numpy(),
        judged.logits.numpy(),
        judged.class_names,
        judged.paths,
        thresholds=judged.thresholds,
        half_width=judged.half_width,
        groups=numbered(judged.groups),
    )
    details = read_details(folder, judged.task)
    details = replace(
        details,
        stage="test",
        root=judged.root,
        embeddings=_embeddings(judged),
    )
    again = how_to_test(judged.checkpoint, details)
    details = replace(details, commands=[*details.commands, *again])
    section = section_of(f"Test of {folder.resolve().name}", evaluation, details)
    return section, write_section(folder / name, section)


def _embeddings(judged: Judged) -> NDArray[np.float32] | None:
    """The features ``(N, D)``, unless several processes have shared the images out."""
    import torch

    complete = sum(map(len, judged.features)) == len(judged.labels)
    return torch.cat(judged.features).numpy() if complete else None


def track(run_folder: Path, report: Path, evaluation: Judgement, named: list[str]) -> None:
    """Add the report to the Weights & Biases run of the fit, where there is one of the user's."""
    from finetune.reporting.wandb_report import own_destination, track_report

    try:
        target = own_destination(run_folder, named)
    except UsageError as error:
        print(f"not sent to Weights & Biases: {error}")
        return
    if target is not None:
        print(f"Weights & Biases: {target}", flush=True)
        track_report(target, run_folder, report, evaluation)
