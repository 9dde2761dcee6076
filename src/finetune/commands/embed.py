"""``finetune embed``: what a network makes of images, as points of one space, into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where, each_of
from finetune.commands.outputs import OptionalPath, wanted_output
from finetune.commands.verb import Typed, verb

if TYPE_CHECKING:
    from finetune.prediction.feature_space import Features

FEATURES = (".parquet", ".npz")
FeaturesFile = Annotated[OptionalPath, Typed(metavar="FILE.npz|FILE.parquet", required=True)]


@verb
def embed(
    checkpoint: Where,
    images: Where | Sequence[Where],
    *,
    output: FeaturesFile = None,
    overwrite: bool = False,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    cache_dir: options.CacheDir = None,
    accelerator: options.Accelerator = "auto",
    quiet: bool = False,
) -> Features:
    """Compute what enters a network's final layer, for images by their content.

    The file names the network, so that features of two networks are never compared.

    Args:
        checkpoint: a .ckpt file or a run folder; of an ensemble the first classifier counts.
        images: files, folders or glob patterns.
        output: the file to write.
        overwrite: replace what is there.
        max_pixels: refuse images with more pixels, at least 1.
        cache_dir: instead of the platform's cache folder.
        accelerator: where the network runs: auto, cpu, gpu, cuda or mps.
        quiet: print nothing.

    Returns:
        The features, with paths, content ids and the key of the network.

    Raises:
        UsageError: an output that must not be written.
        DataError: no image, or one that cannot be read.
    """
    named = each_of(images)
    written = wanted_output(
        output, endings=FEATURES, overwrite=overwrite, inputs=[checkpoint, *named], images=named
    )

    from finetune.prediction import find_images
    from finetune.prediction.feature_space import features_of, needed_for
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.runtime import Runtime
    from finetune.training.features.store import FeatureStore

    runtime = Runtime.chosen(accelerator)
    if written is not None:
        needed_for(written.path)
    files = find_images(named)
    model = load_model(Path(checkpoint), runtime)
    if written is not None:
        written.keep_off(inputs=files, fits=fits_of(model))
    found = features_of(model, files, max_pixels=max_pixels, store=FeatureStore(cache_dir))
    count, width = found.values.shape
    print(f"{count} images of {width} features each, of the network {found.network}")
    if written is not None:
        with written.writing() as beside:
            found.write(beside, ending=written.path.suffix)
        print(f"features written to {written.path}")
    return found
