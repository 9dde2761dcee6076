"""``finetune similar``: the images nearest to one, as the network sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where
from finetune.commands.outputs import FIGURES, OptionalPath, wanted_output
from finetune.commands.terminal import print_line
from finetune.commands.verb import Typed, verb
from finetune.spec.schema import whole

if TYPE_CHECKING:
    from finetune.prediction.feature_space import Neighbour


@verb
def similar(
    checkpoint: Where,
    image: Where,
    *,
    among: Annotated[Where, Typed(("--in",), metavar="DIR|FILE")],
    number: Annotated[int, whole(1)] = 10,
    figure: Annotated[OptionalPath, Typed(metavar="FILE.png")] = None,
    overwrite: bool = False,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    cache_dir: options.CacheDir = None,
    accelerator: options.Accelerator = "auto",
    quiet: bool = False,
) -> list[Neighbour]:
    """Find the images that the network takes for the most alike, the nearest first.

    Distances are one minus the cosine of what enters the final layer: 0 is the same direction.

    Args:
        checkpoint: a .ckpt file or a run folder; of an ensemble the first classifier counts.
        image: the one to compare.
        among: a folder of images, or what finetune embed wrote with the same checkpoint.
        number: how many to name, at least 1.
        figure: a contact sheet to draw.
        overwrite: replace what is there.
        max_pixels: refuse images with more pixels, at least 1.
        cache_dir: instead of the platform's cache folder.
        accelerator: where the network runs: auto, cpu, gpu, cuda or mps.
        quiet: print nothing.

    Returns:
        Path and distance of each neighbour; copies of the image itself are among them.

    Raises:
        CheckpointMismatchError: features of another network.
        DataError: no image, or one that cannot be read.
        UsageError: a figure that must not be written.
    """
    folder = None if Path(among).suffix.lower() in (".npz", ".parquet") else among
    written = wanted_output(
        figure,
        endings=FIGURES,
        overwrite=overwrite,
        option="--figure",
        inputs=[checkpoint, image, among],
        images=[folder],
    )

    from finetune.prediction.feature_space import Features, features_of
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.runtime import Runtime
    from finetune.training.features.store import FeatureStore

    model = load_model(Path(checkpoint), Runtime.chosen(accelerator))
    if written is not None:
        written.keep_off(fits=fits_of(model))
    store = FeatureStore(cache_dir)
    query = features_of(model, image, max_pixels=max_pixels, store=store)
    if folder is None:
        others = Features.from_file(Path(among))
    else:
        others = features_of(model, folder, max_pixels=max_pixels, store=store)
    found = query.nearest(others, number)
    for neighbour in found:
        print_line(f"{neighbour.distance:.4f}  {neighbour.path}")
    if written is not None:
        from finetune.reporting.contact_sheet import contact_sheet
        from finetune.reporting.style import save_png

        with written.writing() as beside:
            save_png(contact_sheet(query.paths[0], found), beside)
        print(f"contact sheet in {written.path}")
    return found
