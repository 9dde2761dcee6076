"""``finetune predict``: a checkpoint and images in, a table of answers out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from finetune.commands import folder_options as options
from finetune.commands.guest import Where, each_of
from finetune.commands.outputs import Output, checked_output
from finetune.commands.verb import Typed
from finetune.errors import UsageError
from finetune.spec.choices import Precision
from finetune.spec.schema import whole

if TYPE_CHECKING:
    from finetune.combining.unknown import UnknownRule
    from finetune.prediction import Predictions
    from finetune.tables.writing import Row, Write

DRIFTED = 0.01  # a p-value below which images are said to be others than those that calibrated


def predict(
    checkpoint: Where,
    images: Sequence[Where],
    *,
    output: Annotated[Where | None, Typed(metavar="FILE")] = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    topk: Annotated[int, whole(1)] = 1,
    batch_size: options.BatchSize = 32,
    test_time_augmentation: Annotated[int, whole(1), Typed(metavar="N")] = 1,
    on_bad_image: options.BadImages = "error",
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_decoding_mb: options.MaxDecodingMb = options.MAX_DECODING_MB,
    accelerator: options.Accelerator = "auto",
    devices: str = "auto",
    precision: Annotated[Precision, Typed(metavar="P")] = "32-true",
) -> None:
    """Name the class of images, on the screen or in a file.

    Args:
        checkpoint: a .ckpt file: classifier, average or ensemble.
        images: files, folders, glob patterns; - reads names from a pipe.
        output: answers as .csv, .parquet or .jsonl; else they are shown.
        overwrite: replace what is there.
        safe_csv: put names that a spreadsheet would take for formulas behind an apostrophe.
        topk: how many classes to name.
        batch_size: images a batch, at least 1.
        test_time_augmentation: views averaged, 1 to 8.
        on_bad_image: stop at files that cannot be read, or leave them out and say which.
        max_pixels: refuse images with more pixels, at least 1.
        max_decoding_mb: refuse images that take more memory to decode, in MiB.
        accelerator: where networks answer: auto, cpu, gpu, cuda or mps.
        devices: how many, or which.
        precision: such as 16-mixed or bf16-mixed.
    """
    from finetune.runtime import Runtime, devices_of_launched

    # Refuses what is not there, in our words.
    runtime = Runtime.joined(accelerator, devices)
    # Of several processes one alone can read what comes in.
    named = runtime.agree(lambda: _from_standard_input(each_of(images)))
    written = None
    if safe_csv or output is not None:
        written = _checked(output, [checkpoint, *named], named, overwrite=overwrite, safe=safe_csv)

    from lightning import Trainer

    from finetune.commands.terminal import on_terminal, progress_bar
    from finetune.commands.trainer import quiet_libraries
    from finetune.prediction import find_images
    from finetune.prediction import predict as answers_to
    from finetune.prediction.predictions import columns_of
    from finetune.prediction.predictor import fits_of, load_model, rule_of
    from finetune.training.progress import PassLine

    quiet_libraries()
    files = find_images(named)
    model = load_model(Path(checkpoint))
    if written is not None:
        written.keep_off(inputs=files, fits=fits_of(model))
    watched = written is not None and on_terminal()
    telling = [progress_bar() if watched else PassLine("Answering")] if written is not None else []
    taken, machines = devices_of_launched(accelerator, devices)
    trainer: Any = Trainer(
        accelerator=accelerator,
        devices=taken,
        num_nodes=machines,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=telling,
        enable_progress_bar=watched,
    )
    one_process = trainer.world_size == 1
    with ExitStack() as stack:
        write: Write = _print
        if written is not None and trainer.is_global_zero:
            opened = _table(written, columns_of(model.task, model.class_names), safe=safe_csv)
            write = stack.enter_context(opened)

        def on_answer(path: Path, answer: Predictions) -> None:
            answer.write(write, top_k=topk)

        predictions = answers_to(
            model,
            files,
            batch_size=batch_size,
            test_time_augmentation=test_time_augmentation,
            on_bad_image=on_bad_image,
            max_pixels=max_pixels,
            max_decoding_mb=max_decoding_mb,
            trainer=trainer,
            on_answer=on_answer if one_process else None,
        )
        if not one_process and trainer.is_global_zero:
            predictions.write(write, top_k=topk)
    for path, reason in predictions.skipped if runtime.is_main else ():
        print(f"left out {path}: {reason}", file=sys.stderr)
    rule, unknown = rule_of(model), predictions.unknown
    if rule is not None and unknown is not None and runtime.is_main:
        print(drift(rule, int(unknown.sum()), len(unknown)), file=sys.stderr)
    if written is not None and trainer.is_global_zero:
        print(f"{len(predictions)} images answered in {written.path}")


def drift(rule: UnknownRule, unknown: int, images: int) -> str:
    """Whether images look like those that calibrated the rule, in words."""
    p_value = rule.drift_p_value(unknown, images)
    verdict = "more than chance: they are other images" if p_value < DRIFTED else "as expected"
    return (
        f"{unknown} of {images} images are unknown, of images like those that calibrated at most "
        f"{rule.alpha:.0%} on average: {verdict} (p = {p_value:.2g})"
    )


def _checked(
    output: Where | None, inputs: list[Where], images: list[str], *, overwrite: bool, safe: bool
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


def _from_standard_input(images: list[str]) -> list[str]:
    if "-" not in images:
        return images
    listed = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    return [name for name in images if name != "-"] + listed


def _print(row: Row, log_probabilities: Sequence[float]) -> None:
    if "confidence" not in row:
        between = f"  {row['lower']:.6g} to {row['upper']:.6g}" if "lower" in row else ""
        print(f"{row['path']}  {row['prediction']:.6g}{between}", flush=True)
        return
    ranks = [""] + [f"_{rank}" for rank in range(2, len(row))]
    named = [
        f"{row[f'prediction{rank}']} {row[f'confidence{rank}']:.3f}"
        for rank in ranks
        if f"prediction{rank}" in row
    ]
    if row.get("unknown") == "true":
        named.append("unknown")
    print(f"{row['path']}  {'  '.join(named)}", flush=True)
