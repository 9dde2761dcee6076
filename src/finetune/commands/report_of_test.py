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


def write_report_of(judged: Judged, folder: Path, name: str) -> tuple[Judgement, Path]:
    """All figures of a test, and the page of its report in the run's folder."""
    from finetune.evaluation.judge import judge as all_figures
    from finetune.evaluation.judge import numbered
    from finetune.reporting.report import describe_environment, write_report
    from finetune.reporting.sources import read_details

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
    details = replace(
        read_details(folder, judged.task),
        root=judged.root,
        embeddings=_embeddings(judged),
        environment=describe_environment(),
    )
    title = f"Test of {folder.resolve().name}"
    return evaluation, write_report(folder / name, evaluation, details, title=title)


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
