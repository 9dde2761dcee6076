"""``finetune predict``: a checkpoint and images in, a table of answers out, or parts of one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where, each_of
from finetune.commands.predict_parts import answer_in_parts
from finetune.commands.predict_table import answer_in_table
from finetune.commands.verb import Typed
from finetune.errors import UsageError
from finetune.spec.answer_settings import AnswerSettings
from finetune.spec.choices import Engine, Precision
from finetune.spec.schema import whole

PART_SIZE = 4096


def predict(
    checkpoint: Where,
    images: Sequence[Where],
    *,
    output: Annotated[Where | None, Typed(metavar="FILE|DIR/")] = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    part_size: Annotated[int | None, whole(1, 10**6), Typed(metavar="N")] = None,
    engine: Engine = "local",
    address: Annotated[str | None, Typed(metavar="ADDR")] = None,
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
    """Name the class of images, on the screen, in a file, or in parts that can be gone on with.

    Args:
        checkpoint: a .ckpt file: classifier, average or ensemble.
        images: files, folders, glob patterns; - reads names from a pipe. Into parts also addresses
            of a store (s3://, gs://), tar shards, and Parquet files with images or their paths.
        output: answers as .csv, .parquet or .jsonl; else they are shown. What ends in / is a
            folder, here or of a store, of Parquet parts: a second call answers what is missing.
        overwrite: replace what is there.
        safe_csv: put names that a spreadsheet would take for formulas behind an apostrophe.
        part_size: images a part, else 4096; a tar shard is one part.
        engine: local answers here, ray by actors, one for each of --devices; into parts alone.
        address: of a Ray cluster; else one is started on this machine.
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
    settings = AnswerSettings(
        top_k=topk,
        batch_size=batch_size,
        test_time_augmentation=test_time_augmentation,
        on_bad_image=on_bad_image,
        max_pixels=max_pixels,
        max_decoding_mb=max_decoding_mb,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
    )
    given, into = each_of(images), None if output is None else os.fspath(output)
    if into is not None and into.endswith(("/", os.sep)):
        _refuse({"--safe-csv": safe_csv}, "FILE.csv", into)
        answer_in_parts(
            checkpoint,
            given,
            into,
            settings,
            part_size or PART_SIZE,
            overwrite=overwrite,
            engine=engine,
            address=address,
        )
    else:
        of_parts = {"--part-size": part_size, "--engine ray": engine == "ray", "--address": address}
        _refuse(of_parts, "DIR/", into)
        answer_in_table(checkpoint, given, into, settings, overwrite=overwrite, safe=safe_csv)


def _refuse(given: Mapping[str, object], wanted: str, output: str | None) -> None:
    """Options that mean nothing to this kind of output."""
    for option, value in given.items():
        if value:
            raise UsageError(
                f"Expected --output {wanted} beside {option}, found {output or 'none'}; leave "
                f"{option} out, or name such a place."
            )
