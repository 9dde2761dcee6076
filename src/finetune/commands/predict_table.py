"""The answers of ``finetune predict`` as one table, on the screen or in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.guest import Where
from finetune.commands.outputs import Output, checked_output
from finetune.commands.terminal import print_line
from finetune.errors import UsageError
from finetune.spec.answer_settings import AnswerSettings

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.combining.unknown import UnknownRule
    from finetune.prediction import Predictions
    from finetune.tables.writing import Row, Write
    from finetune.training.classifier import ImageClassifier

DRIFTED = 0.01  # a p-value below which images are said to be others than those that calibrated


def answer_in_table(
    checkpoint: Where,
    given: list[str],
    output: str | None,
    settings: AnswerSettings,
    *,
    overwrite: bool,
    safe: bool,
) -> None:
    """Answer for files, folders and patterns of this machine; everything is refused early."""
    from finetune.runtime import Runtime

    # Refuses what is not there, in our words.
    runtime = Runtime.joined(settings.accelerator, settings.devices)
    # Of several processes one alone can read what comes in.
    named = runtime.agree(lambda: from_standard_input(given))
    written = None
    if safe or output is not None:
        written = _checked(output, [checkpoint, *named], named, overwrite=overwrite, safe=safe)

    from finetune.combining.ensemble import Ensemble
    from finetune.commands.trainer import quiet_libraries
    from finetune.prediction import find_images
    from finetune.prediction.predictor import fits_of, load_model

    quiet_libraries()
    files = find_images(named)
    model = load_model(Path(checkpoint))
    if written is not None:
        written.keep_off(inputs=files, fits=fits_of(model))
    predictions = _answered(model, files, written, settings, safe=safe)
    if not runtime.is_main:
        return
    for path, reason in predictions.skipped:
        print_line(f"left out {path}: {reason}", error=True)
    rule, unknown = Ensemble.of(model).unknown, predictions.unknown
    if rule is not None and unknown is not None:
        print(drift(rule, int(unknown.sum()), len(unknown)), file=sys.stderr)
    if written is not None:
        print(f"{len(predictions)} images answered in {written.path}")


def drift(rule: UnknownRule, unknown: int, images: int) -> str:
    """Whether images look like those that calibrated the rule, in words."""
    p_value = rule.drift_p_value(unknown, images)
    verdict = "more than chance: they are other images" if p_value < DRIFTED else "it may be chance"
    return (
        f"{unknown} of {images} images are unknown, of images like those that calibrated at most "
        f"{rule.alpha:.0%} on average: {verdict} (p = {p_value:.2g})"
    )


def from_standard_input(images: list[str]) -> list[str]:
    """What was named, and in the place of ``-`` the names that come in."""
    if "-" not in images:
        return images
    listed = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    return [name for name in images if name != "-"] + listed


def _answered(
    model: ImageClassifier | Ensemble,
    files: Sequence[Path],
    written: Output | None,
    settings: AnswerSettings,
    *,
    safe: bool,
) -> Predictions:
    from finetune.prediction import predict
    from finetune.prediction.predictions import columns_of

    trainer = _trainer(settings, shown=written is not None)
    one_process = trainer.world_size == 1
    with ExitStack() as stack:
        write: Write = _print
        if written is not None and trainer.is_global_zero:
            columns = columns_of(model.task, model.class_names)
            write = stack.enter_context(_table(written, columns, safe=safe))

        def on_answer(path: Path, answer: Predictions) -> None:
            answer.write(write, top_k=settings.top_k)

        predictions = predict(
            model,
            files,
            batch_size=settings.batch_size,
            test_time_augmentation=settings.test_time_augmentation,
            on_bad_image=settings.on_bad_image,
            max_pixels=settings.max_pixels,
            max_decoding_mb=settings.max_decoding_mb,
            trainer=trainer,
            on_answer=on_answer if one_process else None,
        )
        if not one_process and trainer.is_global_zero:
            predictions.write(write, top_k=settings.top_k)
    return predictions


def _trainer(settings: AnswerSettings, *, shown: bool) -> Any:
    """Of the devices that were chosen; it shows how far it is unless answers are shown."""
    from lightning import Trainer

    from finetune.commands.terminal import on_terminal, progress_bar
    from finetune.runtime import devices_of_launched
    from finetune.training.progress import PassLine

    watched = shown and on_terminal()
    telling = [progress_bar() if watched else PassLine("Answering")] if shown else []
    taken, machines = devices_of_launched(settings.accelerator, settings.devices)
    return Trainer(
        accelerator=settings.accelerator,
        devices=taken,
        num_nodes=machines,
        precision=settings.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=telling,
        enable_progress_bar=watched,
    )


def _checked(
    output: str | None, inputs: list[Where], images: list[str], *, overwrite: bool, safe: bool
) -> Output:
    """Where the table is to go, checked before any work is done."""
    from finetune.tables.writing import format_of

    if safe and (output is None or format_of(Path(output)) != "csv"):
        raise UsageError(
            f"Expected --output FILE.csv beside --safe-csv, found {output}; "
            "leave --safe-csv out: only of CSV a spreadsheet makes formulas."
        )
    assert output is not None
    format_of(Path(output))
    return checked_output(
        output,
        endings=(Path(output).suffix.lower(),),
        overwrite=overwrite,
        inputs=inputs,
        images=images,
    )


@contextmanager
def _table(output: Output, class_names: Sequence[str], *, safe: bool) -> Iterator[Write]:
    from finetune.tables.writing import open_table

    with output.writing() as beside, open_table(beside, class_names, safe=safe) as write:
        yield write


def _print(row: Row, log_probabilities: Sequence[float]) -> None:
    if "confidence" not in row:
        between = f"  {row['lower']:.6g} to {row['upper']:.6g}" if "lower" in row else ""
        print_line(f"{row['path']}  {row['prediction']:.6g}{between}")
        return
    ranks = [""] + [f"_{rank}" for rank in range(2, len(row))]
    named = [
        f"{row[f'prediction{rank}']} {row[f'confidence{rank}']:.3f}"
        for rank in ranks
        if f"prediction{rank}" in row
    ]
    likeliest = [name for name in row if name.startswith("top_") and name.count("_") == 1]
    named += [f"{row[name]} {row[f'{name}_probability']:.3f}" for name in likeliest]
    if row.get("unknown") == "true":
        named.append("unknown")
    print_line(f"{row['path']}  {'  '.join(named)}")
