"""``finetune inspect``: layers, receptive fields and costs; whether the data suffices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from finetune.commands.guest import Where
from finetune.commands.outputs import FIGURES, Output, wanted_output
from finetune.commands.terminal import aligned
from finetune.commands.verb import Typed, verb
from finetune.errors import PretrainedWeightsError, UsageError
from finetune.spec.schema import whole

if TYPE_CHECKING:
    from torch import nn

    from finetune.networks.layers import Layer
    from finetune.spec.splits import SplitRecord

COLUMNS = ("layer", "kind", "output", "receptive field", "stride", "parameters", "connections")
Count = Annotated[int | None, whole(1)]


class _Opened(NamedTuple):
    """A network, the sizes at which to look at it, and how its fit split its images."""

    network: nn.Module
    size: int
    in_chans: int
    classes: int
    answers: str  # what it says, in words
    fits: tuple[SplitRecord, ...] = ()


@verb
def inspect(
    network: Where,
    *,
    image_size: Count = None,
    in_chans: Count = None,
    classes: Count = None,
    samples: Count = None,
    filters: Annotated[Where | None, Typed(metavar="FILE.png")] = None,
    overwrite: bool = False,
    all: bool = False,
    quiet: bool = False,
) -> list[Layer]:
    """Print a network's layers, their receptive fields and costs; whether the data suffices.

    Args:
        network: a backbone or baseline by name, or a checkpoint's path.
        image_size: side of the image in pixels; by default the network's own.
        in_chans: channels of the images; by default 3, or the checkpoint's.
        classes: by default 10, or the checkpoint's.
        samples: training images: do they suffice?
        filters: draw the first filters.
        overwrite: replace what is there.
        all: every layer, not stages alone.
        quiet: print nothing.

    Returns:
        Each layer, with ``name``, ``kind``, ``output``, ``receptive_field``, ``stride``, ``cost``.

    Raises:
        NetworkError: no network of that name. CheckpointError: no checkpoint.
        UsageError: sizes that are not the checkpoint's, or an output that must not be written.
    """
    drawn = wanted_output(
        filters, endings=FIGURES, overwrite=overwrite, option="--filters", inputs=[network]
    )
    path = Path(network)
    if path.suffix == ".ckpt" or path.is_file():
        opened = _of_checkpoint(path, image_size, {"in_chans": in_chans, "classes": classes})
    else:
        opened = _by_name(
            str(network), image_size, in_chans or 3, classes or 10, weights=drawn is not None
        )
    if drawn is not None:
        drawn.keep_off(fits=opened.fits)
    from finetune.networks.capacity import data_advice
    from finetune.networks.layers import layer_table

    layers = layer_table(opened.network, opened.size, in_chans=opened.in_chans)
    size = f"{opened.size}x{opened.size} pixels"
    print(f"{network}: {size}, {opened.in_chans} channels, {opened.answers}")
    rows = layers if all or len(layers) <= 40 else _thinned(layers)
    print("\n".join(_table(rows)))
    if len(rows) < len(layers):
        print(f"({len(layers) - len(rows)} layers between them left out; --all shows them)")
    parameters = sum(value.numel() for value in opened.network.parameters())
    weighted = sum(layer.cost.parameters for layer in layers)
    connections = sum(layer.cost.connections for layer in layers)
    print(
        f"total: {parameters:,} parameters ({parameters - weighted:,} in norms and embeddings), "
        f"{connections:,} connections = multiply-adds an image"
    )
    if samples is not None:
        print(data_advice(parameters, samples, opened.classes))
    if drawn is not None:
        _draw_filters(opened.network, drawn)
        print(f"filters of the first layer: {drawn.path}")
    return layers


def _of_checkpoint(path: Path, size: int | None, wanted: dict[str, int | None]) -> _Opened:
    from finetune.prediction.predictor import fits_of
    from finetune.training.classifier import ImageClassifier

    classifier = ImageClassifier.from_checkpoint(path)
    preprocessing = classifier.preprocessing
    own = {"in_chans": preprocessing.in_chans, "classes": len(classifier.class_names)}
    for name, value in wanted.items():
        if value not in (None, own[name]):
            raise UsageError(
                f"Expected --{name.replace('_', '-')} {own[name]} as in the checkpoint, found "
                f"{value}; leave it out."
            )
    names = classifier.class_names
    answers = f"{len(names)} classes" if classifier.task.has_choices else f"a number ({names[0]})"
    return _Opened(
        classifier.network,
        size or preprocessing.image_size,
        **own,
        answers=answers,
        fits=fits_of(classifier),
    )


def _by_name(name: str, size: int | None, in_chans: int, classes: int, *, weights: bool) -> _Opened:
    """A backbone or baseline; only an image of its filters needs the pretrained weights."""
    from finetune.networks.baselines import is_baseline
    from finetune.networks.factory import create_network, preprocessing_of

    pretrained = weights and not is_baseline(name)
    try:
        network = create_network(
            name, classes, in_chans=in_chans, image_size=size, pretrained=pretrained
        )
    except PretrainedWeightsError as error:  # whose ways out are options of `fit`
        raise PretrainedWeightsError(
            f"{str(error).partition('. ')[0].rstrip('.')}; leave out --filters, or name "
            "tf_efficientnet_lite0 or a checkpoint."
        ) from error
    size = preprocessing_of(name, in_chans=in_chans, image_size=size).image_size
    return _Opened(network, size, in_chans, classes, f"{classes} classes")


def _thinned(layers: list[Layer]) -> list[Layer]:
    """The first and last layers, and those at which the image's size changes."""
    kept = [layer for before, layer in pairwise(layers) if layer.output[1:] != before.output[1:]]
    return list(dict.fromkeys([layers[0], *kept, layers[-1]]))


def _table(layers: list[Layer]) -> list[str]:
    lines = aligned([COLUMNS, *map(_row, layers)], left=range(3))
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _row(layer: Layer) -> tuple[str, ...]:
    field, stride = layer.receptive_field, layer.stride
    return (
        layer.name,
        layer.kind,
        "x".join(map(str, layer.output)),
        "all" if field is None else f"{field[0]}x{field[1]}",
        "" if stride is None else f"{stride:g}",
        f"{layer.cost.parameters:,}" if layer.cost.parameters else "",
        f"{layer.cost.connections:,}" if layer.cost.connections else "",
    )


def _draw_filters(network: nn.Module, output: Output) -> None:
    from finetune.reporting.filters import filters_figure, first_filters
    from finetune.reporting.style import save_png

    figure = filters_figure({"first layer": first_filters(network)})
    with output.writing() as beside:
        save_png(figure, beside)
