"""The answers of ``finetune predict`` in parts, which a second call goes on with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import storage
from finetune.commands.guest import Where
from finetune.commands.outputs import checked_output
from finetune.commands.predict_table import from_standard_input
from finetune.errors import DataError
from finetune.extras import need
from finetune.long_steps import told_steps
from finetune.spec.answer_settings import AnswerSettings
from finetune.spec.choices import Engine
from finetune.spec.images import file_id

if TYPE_CHECKING:
    from finetune.prediction.parts import PartsRecord
    from finetune.runtime import Runtime
    from finetune.spec.protocols import ImageBlock

# What of the settings decides the answers beyond rounding; the others may be changed meanwhile.
DECIDING = ("top_k", "test_time_augmentation", "max_pixels", "max_decoding_mb", "precision")


def answer_in_parts(
    checkpoint: Where,
    given: list[str],
    folder: str,
    settings: AnswerSettings,
    part_size: int,
    *,
    overwrite: bool,
    engine: Engine,
    address: str | None,
) -> None:
    """Answer for every image that has no answer yet in the folder."""
    need("parquet", folder)
    if engine == "ray":
        need("ray", "--engine ray")
    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.trainer import quiet_libraries
    from finetune.data.image_blocks import each_once
    from finetune.prediction.parts import PartsRecord, opened_parts
    from finetune.runtime import Runtime

    here = engine == "local"
    runtime = Runtime.joined(settings.accelerator, settings.devices) if here else Runtime()
    quiet_libraries()
    given = each_once(runtime.agree(lambda: from_standard_input(given)))
    file = checkpoint_file(Path(checkpoint))
    _keep_off(folder, file, given)
    deciding = {name: value for name, value in asdict(settings).items() if name in DECIDING}
    work = {"checkpoint": file_id(file), **deciding, "part_size": part_size}
    names = runtime.agree(lambda: opened_parts(folder, work, overwrite=overwrite))
    record = PartsRecord(folder, work, names)
    before = record.answered
    pending = _pending(record, given, part_size)
    if engine == "ray":
        from finetune.prediction.on_ray import answers_on_ray

        steps: Iterator[object] = answers_on_ray(file, folder, settings, pending, address)
    else:
        steps = _answers_here(file, folder, settings, pending, runtime)
    with told_steps("Answering parts", None) as advance:
        for _ in steps:
            advance()
    runtime.barrier()
    if runtime.is_main:
        _tell(folder, record, before)


def _answers_here(
    file: Path,
    folder: str,
    settings: AnswerSettings,
    pending: Iterator[tuple[int, ImageBlock]],
    runtime: Runtime,
) -> Iterator[object]:
    """Each part as it is written; of several processes each writes its share."""
    from finetune.prediction.parts_answerer import PartsAnswerer

    answer = PartsAnswerer(file, folder, settings, runtime)
    for turn, (number, block) in enumerate(pending):
        if turn % runtime.world_size == runtime.rank:
            yield answer(number, block)


def _pending(
    record: PartsRecord, given: list[str], part_size: int
) -> Iterator[tuple[int, ImageBlock]]:
    """The blocks of images without an answer."""
    from finetune.data.image_blocks import image_blocks

    number = -1
    for number, block in enumerate(image_blocks(given, part_size, record.size_of)):
        if not record.is_done(number, block):
            yield number, block
    if number < 0:
        raise DataError(f"Expected images, found none in {', '.join(given) or 'an empty list'}.")


def _keep_off(folder: str, checkpoint: Path, given: list[str]) -> None:
    """Nothing is written among the images, or among those of a fit."""
    from finetune.prediction.predictor import fits_of, load_model

    if not storage.is_remote(folder):
        here = [storage.local_path(item) for item in given if not storage.is_remote(item)]
        place = storage.local_path(folder)
        output = checked_output(place, endings=(), overwrite=True, inputs=[checkpoint], images=here)
        output.keep_off(fits=fits_of(load_model(checkpoint)))


def _tell(folder: str, record: PartsRecord, before: int) -> None:
    images, bad = record.finish()
    answered = images - bad
    print(f"{answered:,} images answered in {folder}, {answered - before:,} of them now")
    if bad:
        print(f"left out {bad:,}: {folder}_bad-*.parquet says which and why", file=sys.stderr)
