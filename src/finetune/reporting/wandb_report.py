"""What a test adds to the Weights & Biases run of its fit: figures, tables, the whole report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetune.csv_table import own_rows
from finetune.errors import UsageError
from finetune.evaluation.judgement import Judgement
from finetune.reporting.report import report_files
from finetune.reporting.thumbnails import read_thumbnail
from finetune.training.tracking import tracked_run
from finetune.training.wandb_account import Destination, has_account, mode_here, permitted

IMAGES = 32  # of each table


def own_destination(run_folder: Path, named_entities: Collection[str] = ()) -> Destination | None:
    """Where a report about a run goes: to the run of its fit, if that was made by this account.

    Args:
        run_folder: of the fit; perhaps a stranger's.
        named_entities: that the user named as places to send to.

    Raises:
        UsageError: why nothing is sent although the fit was tracked.
    """
    tracked = tracked_run(run_folder)
    mode = "disabled" if tracked is None else mode_here(tracked.mode)
    if tracked is None or mode == "disabled":
        return None
    if mode == "online" and not has_account():
        raise UsageError(
            "Expected a key for Weights & Biases, found none; `wandb login` stores one."
        )
    return permitted(replace(tracked, mode=mode), named_entities, earlier=True)


def track_report(
    target: Destination, run_folder: Path, report: Path, evaluation: Judgement
) -> None:
    """Add a report to the run that tracked the fit.

    The run gets the figures as its summary, each drawing as an image, the tables of classes, of
    confused pairs, of the surest errors and of suspects with their images, and the folder as an
    artifact. A fit that was logged offline stays offline: ``wandb sync`` sends it.

    Args:
        target: what :func:`own_destination` has found.
        run_folder: of the fit.
        report: the report folder in it, which names what is sent: ``report`` or ``report-other``.
        evaluation: what the report is about.
    """
    import wandb

    settings = wandb.Settings(silent=True)
    run = wandb.init(**asdict(target), resume="allow", dir=str(run_folder), settings=settings)
    stage = report.name.replace("report", "test", 1)
    for name, value in evaluation.to_dict().items():
        if isinstance(value, int | float):
            run.summary[f"{stage}/{name}"] = value
    drawings = {
        f"{stage}/{path.stem}": wandb.Image(str(path))
        for path in report_files(report)
        if path.suffix == ".png"
    }
    tables = {f"{stage}/{name}": table for name, table in _tables(report, evaluation).items()}
    run.log({**tables, **drawings})
    artifact = wandb.Artifact(f"{run.id}-{report.name}", type="report")
    for path in report_files(report):
        artifact.add_file(str(path), name=path.relative_to(report).as_posix())
    run.log_artifact(artifact)
    run.finish()


def _tables(report: Path, evaluation: Judgement) -> dict[str, Any]:
    """The page's tables, as Weights & Biases shows them."""
    import wandb

    def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
        return wandb.Table(columns=list(columns), data=[list(row) for row in rows])

    def image(path: str) -> Any:
        pixels = read_thumbnail(path)
        return None if pixels is None else wandb.Image(pixels)

    _, parts = evaluation.parts
    first, *others = evaluation.tables
    chosen = evaluation.errors()[:IMAGES].tolist()
    errors = [(evaluation.paths[i], evaluation.shown(i)) for i in chosen]
    suspects = own_rows(report / "suspects.csv")[:IMAGES]
    tables = {
        first.name: table(list(parts[0]), [list(part.values()) for part in parts]),
        **{each.name: table([title for title, _ in each.columns], each.rows) for each in others},
        "errors": table(
            ["image", "path", "label", "prediction", "confidence"],
            [(image(path), path, s.label, s.answer, s.sure) for path, s in errors],
        ),
    }
    if suspects:  # of numbers there are none
        rows = [(image(s["path"]), *s.values()) for s in suspects]
        tables["suspects"] = table(["image", *suspects[0]], rows)
    return tables
