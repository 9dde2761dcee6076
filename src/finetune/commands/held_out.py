"""Held-out pictures for the verbs that combine: the same split that the fits were made with."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.parsing import whole_number
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.data.datamodule import ImageFolderDataModule

# What decides on which side a picture stands.
SPLIT_SETTINGS = ("val_fraction", "test_fraction", "seed", "folds", "fold", "group_by")
DEFAULTS: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """``--data.root`` and what goes with it, spelled as for ``fit``."""
    group = parser.add_argument_group("held-out pictures; their split is the fits' own")
    group.add_argument("--data.root", dest="root", help="the folder that the fits were made with")
    group.add_argument(
        "--data.manifest", dest="manifest", help="a CSV that decides on the split instead"
    )
    group.add_argument(
        "--data.batch_size",
        dest="batch_size",
        type=whole_number(1),
        default=32,
        help="pictures a forward pass",
    )
    group.add_argument("--data.num_workers", dest="num_workers", type=int, help="by default chosen")
    group.add_argument("--data.cache", dest="cache", default="auto", help="off, memory, disk, auto")
    group.add_argument("--data.cache_dir", dest="cache_dir", help="instead of the platform's")
    group.add_argument(
        "--share",
        choices=["half", "all"],
        default="half",
        help="of the val pictures: one half picks, the other half calibrates; or all",
    )


def build_held_out(
    options: argparse.Namespace, ensemble: Ensemble
) -> ImageFolderDataModule | dict[int, ImageFolderDataModule]:
    """The pictures that judge an ensemble: one data module, or of a cross-validation one a fold.

    Raises:
        UsageError: fits that were split differently.
        CheckpointMismatchError: folds beside a fit that has seen the pictures of all of them.
    """
    from finetune.combining.folds import common_folds

    fitted_on = ensemble.fitted_on
    if options.manifest or len({data.get("fold") for data in fitted_on}) < 2:
        return build_datamodule(options, fitted_on, ensemble.class_names)
    common_split([_without_fold(data) for data in fitted_on], options.root)
    return {
        fold: build_datamodule(
            options,
            [data for data in fitted_on if data.get("fold") == fold],
            ensemble.class_names,
        )
        for fold in common_folds(ensemble.parts)
    }


def _without_fold(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the fits of one cross-validation agree about; their ``split.csv`` each say else."""
    return {name: value for name, value in data.items() if name not in ("fold", "manifest")}


def build_datamodule(
    options: argparse.Namespace,
    fitted_on: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
) -> ImageFolderDataModule:
    """The pictures of ``--data.root``, split as the fits had them.

    Args:
        options: of :func:`add_data_options`.
        fitted_on: the data settings that the checkpoints keep.
        class_names: the checkpoints' vocabulary.

    Raises:
        UsageError: the fits were split differently, so that one's held-out pictures may have
            trained another.
    """
    from finetune.data.datamodule import ImageFolderDataModule

    settings = {} if options.manifest else common_split(fitted_on, options.root)
    settings |= _reading(fitted_on)
    if options.manifest:
        settings["manifest"] = options.manifest
    return ImageFolderDataModule(
        options.root,
        class_names=class_names,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        cache=options.cache,
        cache_dir=options.cache_dir,
        **settings,
    )


def _reading(fitted_on: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the most lenient of the fits accepted as a picture."""
    settings: dict[str, Any] = {}
    for name in ("max_pixels", "allow_outside"):
        if values := [data[name] for data in fitted_on if name in data]:
            settings[name] = max(values)
    if any(data.get("on_bad_image") == "skip" for data in fitted_on):
        settings["on_bad_image"] = "skip"
    return settings


def common_split(fitted_on: Sequence[Mapping[str, Any]], root: str) -> dict[str, Any]:
    """The one split of all fits, as arguments of the data module.

    Raises:
        UsageError: there are several.
    """
    if not fitted_on:
        return {}
    manifests = [_manifest(data, root) for data in fitted_on]
    contents = {None if each is None else Path(each).read_bytes() for each in manifests}
    if len(contents) > 1:
        raise UsageError(
            "Expected fits with one split of the pictures, found several: "
            f"{', '.join(sorted(map(str, set(manifests))))}; give --data.manifest with pictures "
            "that none was trained on."
        )
    if manifests[0] is not None:
        return {"manifest": manifests[0]}
    splits = [
        {name: data.get(name, DEFAULTS.get(name)) for name in SPLIT_SETTINGS} for data in fitted_on
    ]
    for name in SPLIT_SETTINGS:
        values = {str(split[name]) for split in splits}
        if len(values) > 1:
            raise UsageError(
                f"Expected fits with one split of the pictures, found data.{name} = "
                f"{', '.join(sorted(values))}: what one held out may have trained another; "
                "give --data.manifest with pictures that none was trained on."
            )
    return {name: value for name, value in splits[0].items() if value is not None}


def _manifest(data: Mapping[str, Any], root: str) -> str | None:
    """The fit's manifest, if it was about this folder and is still there."""
    manifest, fitted_root = data.get("manifest"), data.get("root")
    if manifest is None or fitted_root is None or not Path(manifest).is_file():
        return None
    same = Path(fitted_root).absolute() == Path(root).absolute()
    return str(manifest) if same else None


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show each of our warnings as one line on the standard error stream."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"finetune\.")
        warnings.showwarning = show
        yield
