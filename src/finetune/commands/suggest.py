"""``finetune suggest``: which unlabelled images to label next, and a page to do it on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where, each_of
from finetune.commands.outputs import PAGES, TABLES, OptionalPath, wanted_output
from finetune.commands.verb import Typed, verb
from finetune.csv_table import csv_text
from finetune.errors import UsageError
from finetune.spec.schema import whole
from finetune.tables.cells import escaped
from finetune.tables.writing import encodable

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.prediction.suggestions import Suggestion, Suggestions
    from finetune.training.classifier import ImageClassifier

SHOWN = 20  # lines; the table has all


@verb
def suggest(
    checkpoint: Where,
    images: Where | Sequence[Where],
    *,
    number: Annotated[int, whole(1)] = 50,
    output: Annotated[OptionalPath, Typed(metavar="FILE.csv")] = None,
    page: Annotated[OptionalPath, Typed(metavar="FILE.html")] = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    root: options.Root = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    cache_dir: options.CacheDir = None,
    accelerator: options.Accelerator = "auto",
    quiet: bool = False,
) -> list[Suggestion]:
    """Choose the unlabelled images whose labels would tell the most.

    Doubtful ones, unlike each other; copies once. Unknown ones, by a rule of finetune calibrate
    --unknown, are named apart.

    Args:
        checkpoint: a .ckpt file or a run folder.
        images: files, folders or glob patterns.
        number: how many to choose, at least 1.
        output: a table, whose column label can be filled in: it is a manifest then.
        page: a page to label them on, offline, with keys; it saves a manifest.
        overwrite: replace what is there.
        safe_csv: put names that a spreadsheet would take for formulas behind an apostrophe.
        root: the images of the fit: says what 50 more labels are expected to bring.
        max_pixels: refuse images with more pixels, at least 1.
        cache_dir: instead of the platform's cache folder.
        accelerator: where the network runs: auto, cpu, gpu, cuda or mps.
        quiet: print nothing.

    Returns:
        The chosen images, then the unknown ones.

    Raises:
        DataError: no image that is new to the fit.
        UsageError: an output that must not be written, a page where an image has more or other
            than one class, numbers of one member alone, or none of the fit's images below the root.
    """
    named = each_of(images)
    if safe_csv and output is None:
        raise UsageError(
            "Expected --output FILE.csv beside --safe-csv, found none; leave --safe-csv out, or "
            "name the table."
        )
    images_of_all = [*named, *([] if root is None else [root])]
    rule = {"overwrite": overwrite, "inputs": [checkpoint, *named], "images": images_of_all}
    table = wanted_output(output, endings=TABLES, **rule)
    labelling = wanted_output(page, endings=PAGES, option="--page", **rule)

    from finetune.data.inspection import inspect_files
    from finetune.prediction import find_images
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.prediction.suggestions import suggest_among
    from finetune.runtime import Runtime
    from finetune.tasks.one_class import only_one_class
    from finetune.training.features.store import FeatureStore

    files = find_images(named)
    model = load_model(Path(checkpoint), Runtime.chosen(accelerator))
    if labelling is not None:
        only_one_class(model.task, "--page", instead="give --output TABLE.csv")
    if root is not None:
        only_one_class(model.task, "--data.root", instead="leave it out")
    for each in filter(None, (table, labelling)):
        each.keep_off(inputs=files, fits=fits_of(model))
    inspections = inspect_files(
        files, root=files[0].parent, max_pixels=max_pixels, perceptual=True, cache_dir=cache_dir
    )
    store = FeatureStore(cache_dir)
    found = suggest_among(model, inspections, number=number, max_pixels=max_pixels, store=store)
    print("\n".join(_lines(found, len(files))))
    worth = [] if root is None else _worth(model, root, max_pixels, cache_dir)
    print(*worth, sep="\n", end="\n" if worth else "")
    if table is not None:
        with table.writing() as beside:
            write_suggestions(beside, found, safe=safe_csv)
        print(f"table in {table.path}: fill in label, and it is a manifest")
    if labelling is not None:
        from finetune.reporting.label_page import render_label_page, to_label

        with labelling.writing() as beside:
            beside.write_text(
                render_label_page(
                    [to_label(each) for each in (*found.chosen, *found.unknown)],
                    tuple(model.class_names),
                    notes=worth,
                ),
                encoding="utf-8",
            )
        print(f"page in {labelling.path}: label with the keys 1 to 9, then save")
    return [*found.chosen, *found.unknown]


def _worth(
    model: ImageClassifier | Ensemble, root: Where, max_pixels: int, cache_dir: Where | None
) -> list[str]:
    """What more labels are expected to bring, or why that cannot be said."""
    from finetune.data.shard_files import folder_of
    from finetune.errors import DataError, PretrainedWeightsError
    from finetune.prediction.label_worth import worth_of_labels

    try:
        found = worth_of_labels(
            model, folder_of(Path(root)), max_pixels=max_pixels, cache_dir=cache_dir
        )
    except (DataError, PretrainedWeightsError) as error:  # the suggestions stand without it
        return [f"no learning curve: {error}"]
    return found.sentences()


def _lines(found: Suggestions, images: int) -> list[str]:
    """What was chosen and left out, and the first few images."""
    lines = [f"{len(found.chosen)} of {images} images to label, what tells most first:"]
    lines += [f"{each.score:.4f}  {each.path}  {_guess(each)}" for each in found.chosen[:SHOWN]]
    if len(found.chosen) > SHOWN:
        lines.append(f"and {len(found.chosen) - SHOWN} more")
    lines += [f"unknown  {each.path}  {_guess(each)}" for each in found.unknown[:SHOWN]]
    return [*lines, *(f"left out: {count} {why}" for why, count in found.left_out.items())]


def _guess(suggestion: Suggestion) -> str:
    if suggestion.probability is None:
        return f"{suggestion.guess}?"
    return f"{suggestion.classes[0]}? ({suggestion.probability:.2f})"


def write_suggestions(beside: Path, found: Suggestions, *, safe: bool = False) -> None:
    """``path,label,guess,probability,score,unknown``; the label is left to be filled in.

    Of several labels an image the guess is those that are named, and the probability that of the
    likeliest; numbers have none.

    A path is absolute, so no spreadsheet takes it for a formula; the name of a class may be one.
    """
    rows = []
    for each in (*found.chosen, *found.unknown):
        likeliest = "" if each.probability is None else f"{each.probability:.6f}"
        numbers = likeliest, f"{each.score:.6f}"
        path = encodable(os.path.abspath(each.path))
        guess = escaped(each.guess) if safe else each.guess
        rows.append((path, "", encodable(guess), *numbers, str(each.unknown).lower()))
    columns = ("path", "label", "guess", "probability", "score", "unknown")
    beside.write_text(csv_text(columns, rows), encoding="utf-8", newline="")
