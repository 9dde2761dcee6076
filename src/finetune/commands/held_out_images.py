"""Held-out images for the verbs that combine: the same split that the fits were made with."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.parsing import whole_number
from finetune.errors import UsageError
from finetune.spec.settings import DATA, check_settings

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.spec.splits import SplitRecord

# What deals images to sides; a fit says it, and the verbs after it keep to that.
DEALING = ("val_fraction", "test_fraction", "seed", "folds", "fold", "group_by")
_TEXTS = ("group_by", "on_bad_image")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """``--data.root`` and what goes with it, spelled as for ``fit``; and ``--accelerator``."""
    group = parser.add_argument_group("held-out images; their split is the fits' own")
    group.add_argument("--data.root", dest="root", help="the folder that the fits were made with")
    group.add_argument(
        "--data.manifest", dest="manifest", help="a CSV that decides on the split instead"
    )
    group.add_argument(
        "--data.batch_size",
        dest="batch_size",
        type=whole_number(1),
        default=32,
        help="images a forward pass",
    )
    group.add_argument("--data.num_workers", dest="num_workers", type=int, help="by default chosen")
    group.add_argument("--data.cache", dest="cache", default="auto", help="off, memory, disk, auto")
    group.add_argument("--data.cache_dir", dest="cache_dir", help="instead of the platform's")
    add_accelerator(group)
    for name in ("max_pixels", "max_decoding_mb", "on_bad_image", "allow_outside"):
        group.add_argument(f"--data.{name}", help="by default as the fits read them")
    for name in DEALING:
        group.add_argument(f"--data.{name}", help="the fits' own; another is refused")
    group.add_argument(
        "--share",
        choices=["half", "all"],
        default="half",
        help="of the val images: one half picks, the other half calibrates; or all",
    )
    group.add_argument(
        "--allow-reuse",
        action="store_true",
        help="accept images that trained, picked or calibrated before, and say so",
    )


def add_accelerator(parser: argparse._ActionsContainer) -> None:
    """``--accelerator``, for the verbs without a Trainer; see :class:`finetune.runtime.Runtime`."""
    parser.add_argument(
        "--accelerator",
        "--trainer.accelerator",
        default="auto",
        help="where networks answer: auto, cpu, gpu, cuda or mps",
    )


def build_held_out(
    options: argparse.Namespace, ensemble: Ensemble
) -> ImageFolderDataModule | dict[int, ImageFolderDataModule]:
    """The images that judge an ensemble: one data module, or of a cross-validation one a fold.

    Raises:
        UsageError: fits that were split differently.
        CheckpointMismatchError: folds beside a fit that has seen the images of all of them.
    """
    from finetune.combining.folds import common_folds

    records = ensemble.fitted_on
    if options.manifest or len({record.fold for record in records}) < 2:
        return build_datamodule(options, records, ensemble.class_names)
    return {
        fold: build_datamodule(
            options, [each for each in records if each.fold == fold], ensemble.class_names
        )
        for fold in common_folds(ensemble.parts)
    }


def build_datamodule(
    options: argparse.Namespace, records: Sequence[SplitRecord], class_names: Sequence[str]
) -> ImageFolderDataModule:
    """The images of ``--data.root``, on the sides where the fits had them.

    What one fit trained on, none is judged by. Says what differs from the fits' images.

    Args:
        options: of :func:`add_data_options`.
        records: how the fits split their images, as the checkpoints keep it.
        class_names: the checkpoints' vocabulary.

    Raises:
        UsageError: fits of which the settings alone are known, and these differ.
    """
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.training.fitted_splits import common_record

    record = None if options.manifest and not records else common_record(records)
    settings = {} if record is None else split_settings(record, options.manifest)
    settings |= _reading(records)
    if options.manifest:
        settings["manifest"] = options.manifest
    settings |= given_settings(options, settings)
    datamodule = ImageFolderDataModule(
        options.root,
        class_names=class_names,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        cache=options.cache,
        cache_dir=options.cache_dir,
        **settings,
    )
    if record is not None:
        datamodule.follow(record, allow_reuse=options.allow_reuse)
        say_differences(datamodule, record)
    return datamodule


def given_settings(options: argparse.Namespace, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Options on how images are read and dealt, as values; those that deal agree with the fits.

    Raises:
        UsageError: another split than that of the fits is asked for, or it is out of range.
    """
    given: dict[str, Any] = {}
    for name in ("max_pixels", "max_decoding_mb", "on_bad_image", "allow_outside", *DEALING):
        text = getattr(options, f"data.{name}", None)
        if text is not None:
            given[name] = text if name in _TEXTS else _value(text)
    check_settings(given, DATA, option="--data.")
    for name in DEALING:
        if name in given and name in fitted and given[name] != fitted[name]:
            raise UsageError(
                f"Expected the split that the fits were made with (--data.{name} {fitted[name]}), "
                f"found {given[name]}, which would judge by images that trained; leave it out, or "
                "give a split by --data.manifest."
            )
        if name in given and name not in fitted and fitted:
            raise UsageError(
                f"Expected the split that the fits were made with, which has no {name}, found "
                f"--data.{name} {given[name]}; leave it out."
            )
    return given


def _value(text: str) -> Any:
    """A number or a truth value as it is typed; else the text, which no range will take."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def say_differences(datamodule: ImageFolderDataModule, record: SplitRecord | None) -> None:
    """Print what has come, changed and gone since the fit, or that this cannot be known."""
    if differences := datamodule.differences:
        print(differences, flush=True)
    if record is not None and not record.images and datamodule.manifest is None:
        print(
            "the checkpoint, of an older version, does not tell which images it was trained on: "
            "sides are dealt anew by its settings, right only for the very folder of the fit",
            flush=True,
        )


def split_settings(record: SplitRecord, manifest: str | None = None) -> dict[str, Any]:
    """How new images are dealt to sides, as arguments of the data module.

    Args:
        record: of the fit.
        manifest: that was given now, and so counts instead of an old fit's.

    Raises:
        UsageError: an old fit was made with a manifest that is not there any more.
    """
    settings = record.dealing
    fitted = settings.pop("manifest", None)
    if fitted is not None and manifest is None and not record.images:
        if not Path(fitted).is_file():
            raise UsageError(
                f"Expected the fit's own split at {fitted}, found none; give --data.manifest."
            )
        settings["manifest"] = fitted
    return settings


def _reading(records: Sequence[SplitRecord]) -> dict[str, Any]:
    """What the most lenient of the fits accepted as an image."""
    settings: dict[str, Any] = {}
    for name in ("max_pixels", "max_decoding_mb", "allow_outside"):
        if values := [each.settings[name] for each in records if name in each.settings]:
            settings[name] = max(values)
    if any(record.settings.get("on_bad_image") == "skip" for record in records):
        settings["on_bad_image"] = "skip"
    return settings


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show each of our warnings as one line on the standard error stream."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"finetune\.")
        warnings.showwarning = show
        yield
