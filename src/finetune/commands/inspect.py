"""``finetune inspect``: a network's layers, what they see and cost; whether the data suffices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.outputs import (
    FIGURES,
    Output,
    add_overwrite,
    checked_output,
)
from finetune.commands.parsing import Parser
from finetune.errors import PretrainedWeightsError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from finetune.networks.layers import Layer
    from finetune.spec.splits import SplitRecord

COLUMNS = ("layer", "kind", "output", "sees", "stride", "parameters", "connections")


def parser() -> Parser:
    """Options of the verb."""
    options = Parser(
        prog="finetune inspect",
        description="Print a network's layers, what they see and cost; whether the data suffices.",
    )
    options.add_argument("network", help="a backbone or baseline by name, or a checkpoint's path")
    options.add_argument("--image-size", type=int, help="pixels; default: the network's own")
    options.add_argument("--in-chans", type=int, help="channels of the images; default: 3")
    options.add_argument("--classes", type=int, help="default: 10, or the checkpoint's")
    options.add_argument("--samples", type=int, help="training images: do they suffice?")
    options.add_argument("--filters", metavar="FILE.png", help="draw the first filters")
    add_overwrite(options)
    options.add_argument("--all", action="store_true", help="every layer, not stages alone")
    return options


def main(arguments: list[str]) -> int:
    """Print the table; write the filters where asked for."""
    given = parser().parse_args(arguments)
    for option in ("image_size", "in_chans", "classes", "samples"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise UsageError(
                f"Expected --{option.replace('_', '-')} of at least 1, found {value}; "
                "leave it out for the default."
            )
    filters = None
    if given.filters is not None:
        filters = checked_output(
            given.filters,
            endings=FIGURES,
            overwrite=given.overwrite,
            option="--filters",
            inputs=[given.network],
        )
    network, facts, fits = _open(given)
    if filters is not None:
        filters.keep_off(fits=fits)
    from finetune.networks.capacity import data_advice
    from finetune.networks.layers import layer_table

    size, in_chans, classes = facts["image_size"], facts["in_chans"], facts["classes"]
    layers = layer_table(network, size, in_chans=in_chans)
    print(f"{given.network}: {size}x{size} pixels, {in_chans} channels, {classes} classes")
    rows = layers if given.all or len(layers) <= 40 else _thinned(layers)
    print("\n".join(_table(rows)))
    if len(rows) < len(layers):
        print(f"({len(layers) - len(rows)} layers between them left out; --all shows them)")
    parameters = sum(value.numel() for value in network.parameters())
    weighted = sum(layer.cost.parameters for layer in layers)
    connections = sum(layer.cost.connections for layer in layers)
    print(
        f"total: {parameters:,} parameters ({parameters - weighted:,} in norms and embeddings), "
        f"{connections:,} connections = multiply-adds an image"
    )
    if given.samples is not None:
        print(data_advice(parameters, given.samples, classes))
    if filters is not None:
        _draw_filters(network, filters)
        print(f"filters of the first layer: {filters.path}")
    return 0


def _open(given: Any) -> tuple[nn.Module, dict[str, int], tuple[SplitRecord, ...]]:
    """The network, the sizes at which to look at it, and how its fit split its images."""
    from finetune.networks.baselines import is_baseline
    from finetune.networks.factory import create_network, preprocessing_of
    from finetune.prediction.predictor import fits_of
    from finetune.training.classifier import ImageClassifier

    path = Path(given.network)
    if path.suffix == ".ckpt" or path.is_file():
        classifier = ImageClassifier.from_checkpoint(path)
        preprocessing = classifier.preprocessing
        for option, own in (
            ("in_chans", preprocessing.in_chans),
            ("classes", len(classifier.class_names)),
        ):
            if getattr(given, option) not in (None, own):
                raise UsageError(
                    f"Expected --{option.replace('_', '-')} {own} as in the checkpoint, found "
                    f"{getattr(given, option)}; leave it out."
                )
        facts = {
            "image_size": given.image_size or preprocessing.image_size,
            "in_chans": preprocessing.in_chans,
            "classes": len(classifier.class_names),
        }
        return classifier.network, facts, fits_of(classifier)
    in_chans, classes = given.in_chans or 3, given.classes or 10
    # Only an image of the filters needs the pretrained weights.
    pretrained = given.filters is not None and not is_baseline(given.network)
    try:
        network = create_network(
            given.network,
            classes,
            in_chans=in_chans,
            image_size=given.image_size,
            pretrained=pretrained,
        )
    except PretrainedWeightsError as error:  # whose ways out are options of `fit`
        raise PretrainedWeightsError(
            f"{str(error).partition('. ')[0].rstrip('.')}; leave out --filters, or name "
            "tf_efficientnet_lite0 or a checkpoint."
        ) from error
    preprocessing = preprocessing_of(given.network, in_chans=in_chans, image_size=given.image_size)
    facts = {
        "image_size": preprocessing.image_size,
        "in_chans": in_chans,
        "classes": classes,
    }
    return network, facts, ()


def _thinned(layers: list[Layer]) -> list[Layer]:
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
