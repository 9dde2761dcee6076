"""``finetune explain``: show where in an image the answer comes from (Grad-CAM)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where, each_of
from finetune.commands.outputs import checked_output, default_output
from finetune.commands.verb import Typed, verb
from finetune.errors import ImageError

if TYPE_CHECKING:
    from finetune.reporting.explain import Explanation

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@verb
def explain(
    checkpoint: Where,
    images: Where | Sequence[Where],
    *,
    class_names: Annotated[
        Sequence[str] | None, Typed(("--class", "--label"), metavar="NAME", repeated=True)
    ] = None,
    output: Annotated[Where | None, Typed(metavar="FILE.png")] = None,
    overwrite: bool = False,
    on_bad_image: options.BadImages = "error",
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_decoding_mb: options.MaxDecodingMb = options.MAX_DECODING_MB,
    accelerator: options.Accelerator = "auto",
    quiet: bool = False,
) -> list[list[Explanation]]:
    """Show where in an image the answer comes from (Grad-CAM).

    Args:
        checkpoint: a .ckpt file: classifier, average or ensemble.
        images: files, folders or glob patterns.
        class_names: a class or label to explain beside those predicted; may be repeated.
        output: the image to write; by default explained.png, or the next free name.
        overwrite: replace what is there.
        on_bad_image: stop at files that cannot be read, or leave them out and say which.
        max_pixels: refuse images with more pixels, at least 1.
        max_decoding_mb: refuse images that take more memory to decode, in MiB.
        accelerator: where networks answer: auto, cpu, gpu, cuda or mps.
        quiet: print nothing.

    Returns:
        For each image what speaks for the predicted class or labels, then for those asked for.

    Raises:
        UsageError: an unknown class, or an output that must not be written.
        DataError: no image, or one that cannot be read.
    """
    named = each_of(images)
    written = checked_output(
        default_output("explained.png", output, overwrite=overwrite),
        endings=IMAGES,
        overwrite=overwrite,
        inputs=[checkpoint, *named],
        images=named,
    )

    from finetune.prediction import find_images
    from finetune.prediction.inputs import stopped_by
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.reporting.explain import explain as explain_image
    from finetune.reporting.overlays import panels
    from finetune.runtime import Runtime

    runtime = Runtime.chosen(accelerator)
    files = find_images(named)
    model = load_model(Path(checkpoint), runtime)
    written.keep_off(inputs=files, fits=fits_of(model))
    rows = []
    for file in files:
        try:
            explained = explain_image(
                model,
                file,
                [None, *(class_names or [])],
                max_pixels=max_pixels,
                max_decoding_mb=max_decoding_mb,
            )
        except ImageError as error:
            if on_bad_image == "error":
                raise stopped_by(str(error)) from error
            print(f"left out {file}: {error}", file=sys.stderr)
            continue
        rows.append(explained)
        answers = ", ".join(f"{e.class_name} {e.told}" for e in rows[-1])
        print(f"{file}  {answers}", flush=True)
    if not rows:
        raise ImageError(f"Expected an image that can be read, found none of {len(files)}.")
    with written.writing() as beside:
        panels(rows).save(beside)
    print(f"explained in {written.path}")
    return rows
