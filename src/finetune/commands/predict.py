"""``finetune predict``: a checkpoint and pictures in, a table of answers out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.outputs import Output, add_overwrite, checked_output, fitted_roots
from finetune.commands.parsing import Parser, whole_number

if TYPE_CHECKING:
    from finetune.prediction import Predictions


def main(arguments: list[str]) -> int:
    """Print the answers, or write them to ``--output`` as they come."""
    options = _parser().parse_args(arguments)
    pictures = _from_standard_input(options.pictures)
    output = None
    if options.output is not None:
        from finetune.answer_files import format_of

        format_of(options.output)
        output = checked_output(
            options.output,
            endings=(Path(options.output).suffix.lower(),),
            overwrite=options.overwrite,
            inputs=[options.checkpoint, *pictures],
            images=pictures,
        )

    from lightning import Trainer

    from finetune.commands.loading import fits_of, load_answerer
    from finetune.commands.terminal import on_terminal, progress_bar
    from finetune.commands.trainer import quiet_libraries
    from finetune.prediction import find_pictures, predict

    quiet_libraries()
    files = find_pictures(pictures)
    answerer = load_answerer(options.checkpoint)
    if output is not None:
        output.keep_off(inputs=files, images=fitted_roots(fits_of(answerer)))
    watched = output is not None and on_terminal()
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[progress_bar()] if watched else [],
        enable_progress_bar=watched,
    )
    with ExitStack() as stack:
        write: Callable[[dict[str, Any]], None] = _print
        if output is not None and trainer.is_global_zero and trainer.world_size == 1:
            write = stack.enter_context(_answer_file(output))

        def on_answer(path: Path, answer: Predictions) -> None:
            for row in answer.rows(top_k=options.topk):
                write(row)

        one_process = trainer.world_size == 1
        predictions = predict(
            answerer,
            files,
            batch_size=options.batch_size,
            test_time_augmentation=options.test_time_augmentation,
            on_bad_image=options.on_bad_image,
            max_pixels=options.max_pixels,
            trainer=trainer,
            on_answer=on_answer if one_process else None,
        )
    if not one_process and trainer.is_global_zero:
        with ExitStack() as stack:
            if output is not None:
                write = stack.enter_context(_answer_file(output))
            for row in predictions.rows(top_k=options.topk):
                write(row)
    for path, reason in predictions.skipped:
        print(f"left out {path}: {reason}", file=sys.stderr)
    if output is not None and trainer.is_global_zero:
        print(f"{len(predictions)} pictures answered in {output.path}")
    return 0


@contextmanager
def _answer_file(output: Output) -> Iterator[Callable[[dict[str, Any]], None]]:
    from finetune.answer_files import open_answer_file

    with output.writing() as beside, open_answer_file(beside) as write:
        yield write


def _parser() -> Parser:
    parser = Parser(
        prog="finetune predict",
        description="Name the class of pictures, on the screen or in a file.",
    )
    parser.add_argument("checkpoint", help="a .ckpt file: classifier, average or ensemble")
    parser.add_argument(
        "pictures", nargs="+", help="files, folders, glob patterns; - reads names from a pipe"
    )
    parser.add_argument("--output", help="answers as .csv, .parquet or .jsonl; else they are shown")
    add_overwrite(parser)
    parser.add_argument("--topk", type=whole_number(1), default=1, help="how many classes to name")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=32, help="pictures a batch, at least 1"
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
        help="refuse pictures with more pixels, at least 1",
    )
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ... as Lightning says")
    parser.add_argument("--devices", default="auto", help="how many, or which")
    parser.add_argument("--precision", default="32-true", help="such as 16-mixed or bf16-mixed")
    return parser


def _from_standard_input(pictures: list[str]) -> list[str]:
    if "-" not in pictures:
        return pictures
    listed = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    return [name for name in pictures if name != "-"] + listed


def _print(row: dict[str, Any]) -> None:
    ranks = [""] + [f"_{rank}" for rank in range(2, len(row))]
    named = [
        f"{row[f'prediction{rank}']} {row[f'confidence{rank}']:.3f}"
        for rank in ranks
        if f"prediction{rank}" in row
    ]
    print(f"{row['path']}  {'  '.join(named)}", flush=True)
