"""What a test adds to the Weights & Biases run of its fit: figures, tables, the whole report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.reporting.evaluation import Evaluation
from finetune.training.tracking import has_account


def track_report(
    tracked: Mapping[str, Any], run_folder: Path, report: Path, evaluation: Evaluation
) -> bool:
    """Add a report to the run that tracked the fit; false where that would ask for a key.

    The run gets the figures as its summary, each drawing as an image, the table of classes, and
    the folder as an artifact. A fit that was logged offline stays offline: ``wandb sync`` sends it.

    Args:
        tracked: what ``finish_tracking`` returned in the end of the fit.
        run_folder: of the fit.
        report: the report folder in it, which names what is sent: ``report`` or ``report-other``.
        evaluation: what the report is about.
    """
    if tracked["mode"] == "online" and not has_account():
        return False
    import wandb

    settings = wandb.Settings(silent=True)
    run = wandb.init(**tracked, resume="allow", dir=str(run_folder), settings=settings)
    stage = report.name.replace("report", "test", 1)
    for name, value in evaluation.to_dict().items():
        if isinstance(value, int | float):
            run.summary[f"{stage}/{name}"] = value
    rows = [[c.name, c.precision, c.recall, c.f1, c.support] for c in evaluation.per_class]
    columns = ["class", "precision", "recall", "f1", "support"]
    drawings = {
        f"{stage}/{path.stem}": wandb.Image(str(path))
        for path in sorted((report / "figures").glob("*.png"))
    }
    run.log({f"{stage}/classes": wandb.Table(columns=columns, data=rows), **drawings})
    artifact = wandb.Artifact(f"{run.id}-{report.name}", type="report")
    artifact.add_dir(str(report))
    run.log_artifact(artifact)
    run.finish()
    return True
