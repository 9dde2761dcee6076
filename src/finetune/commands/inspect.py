"""``finetune inspect``: layers, receptive fields and costs; whether the data suffices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands.guest import Where
from finetune.commands.outputs import FIGURES, Output, wanted_output
from finetune.commands.verb import Typed, run, verb
from finetune.errors import PretrainedWeightsError, UsageError
from finetune.spec.schema import whole

if TYPE_CHECKING:
    from torch import nn

    from finetune.networks.layers import Layer
    from finetune.spec.splits import SplitRecord

COLUMNS = ("layer", "kind", "output", "receptive field", "stride", "parameters", "connections")
Count = Annotated[int | None, whole(1)]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What :func:`finetune.inspect` found.

    Attributes:
        network: at which was looked; a checkpoint's with its weights.
        layers: each with its ``name``, ``kind``, ``output``, ``receptive_field``, ``stride``, cost.
        image_size: in pixels; ``in_chans`` and ``classes`` go with it.
        fits: how a checkpoint's fit split its images.
    """

    network: nn.Module
    layers: tuple[Layer, ...]
    image_size: int
    in_chans: int
    classes: int
    fits: tuple[SplitRecord, ...] = ()

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(value.numel() for value in self.network.parameters())

    @property
    def connections(self) -> int:
        """Multiply-adds an image."""
        return sum(layer.cost.connections for layer in self.layers)


def main(arguments: list[str]) -> int:
    """Print the table; write the filters where asked for."""
    run(inspect, arguments)
    return 0


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
) -> Inspected:
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

    Raises:
        NetworkError: no network of that name. CheckpointError: no checkpoint.
        UsageError: sizes that are not the checkpoint's, or an output that must not be written.
    """
    drawn = wanted_output(
        filters, endings=FIGURES, overwrite=overwrite, option="--filters", inputs=[network]
    )
    path = Path(network)
    if path.suffix == ".ckpt" or path.is_file():
        found = _of_checkpoint(path, image_size, {"in_chans": in_chans, "classes": classes})
    else:
        found = _by_name(
            str(network), image_size, in_chans or 3, classes or 10, weights=drawn is not None
        )
    if drawn is not None:
        drawn.keep_off(fits=found.fits)
    print(f"{network}: {_sizes(found)}")
    rows = list(found.layers) if all or len(found.layers) <= 40 else _thinned(found.layers)
    print("\n".join(_table(rows)))
    if len(rows) < len(found.layers):
        print(f"({len(found.layers) - len(rows)} layers between them left out; --all shows them)")
    print(_total(found))
    if samples is not None:
        from finetune.networks.capacity import data_advice

        print(data_advice(found.parameters, samples, found.classes))
    if drawn is not None:
        _draw_filters(found.network, drawn)
        print(f"filters of the first layer: {drawn.path}")
    return found


def _of_checkpoint(path: Path, image_size: int | None, wanted: dict[str, int | None]) -> Inspected:
    """A checkpoint's network, at its own sizes."""
    from finetune.networks.layers import layer_table
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
    size = image_size or preprocessing.image_size
    layers = layer_table(classifier.network, size, in_chans=own["in_chans"])
    return Inspected(classifier.network, tuple(layers), size, **own, fits=fits_of(classifier))


def _by_name(
    name: str, image_size: int | None, in_chans: int, classes: int, *, weights: bool
) -> Inspected:
    """A backbone or baseline; only an image of its filters needs the pretrained weights."""
    from finetune.networks.baselines import is_baseline
    from finetune.networks.factory import create_network, preprocessing_of
    from finetune.networks.layers import layer_table

    try:
        network = create_network(
            name,
            classes,
            in_chans=in_chans,
            image_size=image_size,
            pretrained=weights and not is_baseline(name),
        )
    except PretrainedWeightsError as error:  # whose ways out are options of `fit`
        raise PretrainedWeightsError(
            f"{str(error).partition('. ')[0].rstrip('.')}; leave out --filters, or name "
            "tf_efficientnet_lite0 or a checkpoint."
        ) from error
    size = preprocessing_of(name, in_chans=in_chans, image_size=image_size).image_size
    layers = layer_table(network, size, in_chans=in_chans)
    return Inspected(network, tuple(layers), size, in_chans, classes)


def _sizes(found: Inspected) -> str:
    size = found.image_size
    return f"{size}x{size} pixels, {found.in_chans} channels, {found.classes} classes"


def _total(found: Inspected) -> str:
    weighted = sum(layer.cost.parameters for layer in found.layers)
    return (
        f"total: {found.parameters:,} parameters ({found.parameters - weighted:,} in norms and "
        f"embeddings), {found.connections:,} connections = multiply-adds an image"
    )


def _thinned(layers: Sequence[Layer]) -> list[Layer]:
    """The first and last layers, and those at which the image's size changes."""
    kept = [layer for before, layer in pairwise(layers) if layer.output[1:] != before.output[1:]]
    return list(dict.fromkeys([layers[0], *kept, layers[-1]]))


def _table(layers: list[Layer]) -> list[str]:
    rows = [COLUMNS, *(_row(layer) for layer in layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
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
