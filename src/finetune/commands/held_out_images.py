"""Held-out images for the verbs that combine: the same split that the fits were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from finetune.commands.folder_options import Accelerator
from finetune.commands.guest import Where
from finetune.commands.verb import Typed
from finetune.errors import UsageError
from finetune.spec.choices import Share
from finetune.spec.settings import DATA

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.spec.splits import SplitRecord

# What deals images to sides; a fit says it, and the verbs after it keep to that.
DEALING = ("val_fraction", "test_fraction", "seed", "folds", "fold", "group_by")
NOT_OF_THE_IMAGES = ("accelerator", "share", "allow_reuse", "split_seed")

OF_FITS = Typed(("--data.root",), metavar="DIR")


def _typed(setting: str) -> Typed:
    """An option of the images, spelled as for ``fit``."""
    return Typed((f"--data.{setting}",))


class HeldOut(TypedDict, total=False):
    """Held-out images; their split is the fits' own.

    Attributes:
        manifest: a CSV that decides on the split instead.
        batch_size: images a forward pass; 32 by default.
        num_workers: processes that read; by default chosen.
        cache: off, memory, disk or auto, the default.
        cache_dir: instead of the platform's cache folder.
        max_pixels, max_decoding_mb, on_bad_image, allow_outside: by default as the fits read them.
        val_fraction, test_fraction, split_seed, folds, fold, group_by: the fits' own; another is
            refused.
        accelerator: where networks answer: auto, the default, cpu, gpu, cuda or mps.
        share: of the val images: one half, the default, picks, the other half calibrates; or all.
        allow_reuse: accept images that trained, picked or calibrated before, and say so.
    """

    manifest: Annotated[Where, _typed("manifest")]
    batch_size: Annotated[int, DATA["batch_size"], _typed("batch_size")]
    num_workers: Annotated[int, DATA["num_workers"], _typed("num_workers")]
    cache: Annotated[Literal["off", "memory", "disk", "auto"], _typed("cache")]
    cache_dir: Annotated[Where, _typed("cache_dir")]
    max_pixels: Annotated[int, DATA["max_pixels"], _typed("max_pixels")]
    max_decoding_mb: Annotated[int, DATA["max_decoding_mb"], _typed("max_decoding_mb")]
    on_bad_image: Annotated[Literal["error", "skip"], _typed("on_bad_image")]
    allow_outside: Annotated[bool, _typed("allow_outside")]
    val_fraction: Annotated[float, DATA["val_fraction"], _typed("val_fraction")]
    test_fraction: Annotated[float, DATA["test_fraction"], _typed("test_fraction")]
    split_seed: Annotated[int, DATA["seed"], Typed(("--data.seed",), metavar="SEED")]
    folds: Annotated[int, DATA["folds"], _typed("folds")]
    fold: Annotated[int, DATA["fold"], _typed("fold")]
    group_by: Annotated[str, _typed("group_by")]
    accelerator: Accelerator
    share: Share
    allow_reuse: bool


def build_held_out(
    data: Where, held_out: HeldOut, ensemble: Ensemble
) -> ImageFolderDataModule | dict[int, ImageFolderDataModule]:
    """The images that judge an ensemble: one data module, or of a cross-validation one a fold.

    Raises:
        UsageError: fits that were split differently.
        CheckpointMismatchError: folds beside a fit that has seen the images of all of them.
    """
    from finetune.combining.folds import common_folds

    records, names = ensemble.fitted_on, ensemble.class_names
    if "manifest" in held_out or len({record.fold for record in records}) < 2:
        return build_datamodule(data, held_out, records, names)
    of_fold = {
        fold: [each for each in records if each.fold == fold]
        for fold in common_folds(ensemble.parts)
    }
    return {fold: build_datamodule(data, held_out, each, names) for fold, each in of_fold.items()}


def build_datamodule(
    data: Where, held_out: HeldOut, records: Sequence[SplitRecord], class_names: Sequence[str]
) -> ImageFolderDataModule:
    """The images of a folder, on the sides where the fits had them.

    What one fit trained on, none is judged by. Says what differs from the fits' images.

    Args:
        data: the folder.
        held_out: how it is read, as far as given.
        records: how the fits split their images, as the checkpoints keep it.
        class_names: the checkpoints' vocabulary.

    Raises:
        UsageError: fits of which the settings alone are known, and these differ; or another split
            than theirs is asked for.
    """
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.training.fitted_splits import common_record

    manifest = held_out.get("manifest")
    record = None if manifest and not records else common_record(records)
    settings = {} if record is None else split_settings(record, manifest)
    settings |= _reading(records)
    settings["task"] = records[0].settings.get("task", "multiclass") if records else "auto"
    if manifest:
        settings["manifest"] = manifest
        settings |= label_columns_of(records[0] if records else None, manifest)
    given = {name: value for name, value in held_out.items() if name not in NOT_OF_THE_IMAGES}
    if "split_seed" in held_out:
        given["seed"] = held_out["split_seed"]
    refuse_another_split(given, settings)
    datamodule = ImageFolderDataModule(
        Path(data), class_names=class_names, **{"batch_size": 32, **settings, **given}
    )
    if record is not None:
        datamodule.follow(record, allow_reuse=held_out.get("allow_reuse", False))
        say_differences(datamodule, record)
    return datamodule


def label_columns_of(record: SplitRecord | None, manifest: Where) -> dict[str, Any]:
    """The label columns of the fit, where this manifest has them and no column ``label``."""
    from finetune.data.manifest import manifest_columns

    names = None if record is None else record.settings.get("label_columns")
    if not names or "label" in manifest_columns(manifest):
        return {}
    return {"label_columns": list(names)}


def refuse_another_split(given: Mapping[str, Any], fitted: Mapping[str, Any]) -> None:
    """What deals images to sides agrees with the fits.

    Raises:
        UsageError: another split than that of the fits is asked for.
    """
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


def split_settings(record: SplitRecord, manifest: Where | None = None) -> dict[str, Any]:
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
