"""``finetune predict``: a checkpoint and images in, a table of answers out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.held_out_images import add_accelerator
from finetune.commands.outputs import Output, add_overwrite, checked_output
from finetune.commands.parsing import Parser, whole_number
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.prediction import Predictions
    from finetune.tables.writing import Row, Write


def main(arguments: list[str]) -> int:
    """Print the answers, or write them to ``--output`` as they come."""
    options = _parser().parse_args(arguments)
    from lightning import Trainer

    from finetune.commands.terminal import on_terminal, progress_bar
    from finetune.commands.trainer import quiet_libraries
    from finetune.prediction import find_images, predict
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.runtime import Runtime, devices_of_launched

    quiet_libraries()
    # Refuses what is not there, in our words.
    runtime = Runtime.joined(options.accelerator, options.devices)
    # Of several processes one alone can read what comes in.
    images = runtime.agree(lambda: _from_standard_input(options.images))
    output = _checked(options, images)
    files = find_images(images)
    model = load_model(options.checkpoint)
    if output is not None:
        output.keep_off(inputs=files, fits=fits_of(model))
    watched = output is not None and on_terminal()
    devices, machines = devices_of_launched(options.accelerator, options.devices)
    trainer: Any = Trainer(
        accelerator=options.accelerator,
        devices=devices,
        num_nodes=machines,
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[progress_bar()] if watched else [],
        enable_progress_bar=watched,
    )
    one_process = trainer.world_size == 1
    with ExitStack() as stack:
        write: Write = _print
        if output is not None and trainer.is_global_zero:
            opened = _table(output, model.class_names, safe=options.safe_csv)
            write = stack.enter_context(opened)

        def on_answer(path: Path, answer: Predictions) -> None:
            answer.write(write, top_k=options.topk)

        predictions = predict(
            model,
            files,
            batch_size=options.batch_size,
            test_time_augmentation=options.test_time_augmentation,
            on_bad_image=options.on_bad_image,
            max_pixels=options.max_pixels,
            trainer=trainer,
            on_answer=on_answer if one_process else None,
        )
        if not one_process and trainer.is_global_zero:
            predictions.write(write, top_k=options.topk)
    for path, reason in predictions.skipped if runtime.is_main else ():
        print(f"left out {path}: {reason}", file=sys.stderr)
    if output is not None and trainer.is_global_zero:
        print(f"{len(predictions)} images answered in {output.path}")
    return 0


def _checked(options: argparse.Namespace, images: Sequence[str]) -> Output | None:
    """Where the table is to go, checked before any work is done; None: to the screen."""
    from finetune.tables.writing import format_of

    form = None if options.output is None else format_of(options.output)
    if options.safe_csv and form != "csv":
        raise UsageError(
            f"Expected --output FILE.csv beside --safe-csv, found {options.output}; "
            "leave --safe-csv out: only of CSV a spreadsheet makes formulas."
        )
    if options.output is None:
        return None
    return checked_output(
        options.output,
        endings=(Path(options.output).suffix.lower(),),
        overwrite=options.overwrite,
        inputs=[options.checkpoint, *images],
        images=images,
    )


@contextmanager
def _table(output: Output, class_names: Sequence[str], *, safe: bool) -> Iterator[Write]:
    from finetune.tables.writing import open_table

    with output.writing() as beside, open_table(beside, class_names, safe=safe) as write:
        yield write


def _parser() -> Parser:
    parser = Parser(
        prog="finetune predict",
        description="Name the class of images, on the screen or in a file.",
    )
    parser.add_argument("checkpoint", help="a .ckpt file: classifier, average or ensemble")
    parser.add_argument(
        "images", nargs="+", help="files, folders, glob patterns; - reads names from a pipe"
    )
    parser.add_argument("--output", help="answers as .csv, .parquet or .jsonl; else they are shown")
    add_overwrite(parser)
    parser.add_argument(
        "--safe-csv",
        action="store_true",
        help="put names that a spreadsheet would take for formulas behind an apostrophe",
    )
    parser.add_argument("--topk", type=whole_number(1), default=1, help="how many classes to name")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=32, help="images a batch, at least 1"
    )
    parser.add_argument(
        "--test-time-augmentation",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="views averaged, 1 to 8",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=["error", "skip"],
        default="error",
        help="stop at files that cannot be read, or leave them out and say which",
    )
    parser.add_argument(
        "--max-pixels",
        type=whole_number(1),
        default=178_956_970,
        help="refuse images with more pixels, at least 1",
    )
    add_accelerator(parser)
    parser.add_argument("--devices", default="auto", help="how many, or which")
    parser.add_argument("--precision", default="32-true", help="such as 16-mixed or bf16-mixed")
    return parser


def _from_standard_input(images: list[str]) -> list[str]:
    if "-" not in images:
        return images
    listed = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    return [name for name in images if name != "-"] + listed


def _print(row: Row, log_probabilities: Sequence[float]) -> None:
    ranks = [""] + [f"_{rank}" for rank in range(2, len(row))]
    named = [
        f"{row[f'prediction{rank}']} {row[f'confidence{rank}']:.3f}"
        for rank in ranks
        if f"prediction{rank}" in row
    ]
    print(f"{row['path']}  {'  '.join(named)}", flush=True)
