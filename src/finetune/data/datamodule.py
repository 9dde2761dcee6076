"""From a folder of images to batches: the LightningDataModule of every command."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data.assignment import SplitSettings
from finetune.data.cache import CacheMode
from finetune.data.dataset import Reader, balancing_weights, shuffled_order
from finetune.data.decoding import MAX_PIXELS
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.device_choice import DeviceChoice, OnDevice
from finetune.data.fetched_shards import brought_here
from finetune.data.findings import write_findings
from finetune.data.folder import Split
from finetune.data.found_images import FoundImages
from finetune.data.image_loaders import ImageLoaders, Loader
from finetune.data.labelled_folder import LabelledFolder, check_choice
from finetune.data.manifest import write_manifest
from finetune.data.preview import write_batch_image
from finetune.data.readers import Readers
from finetune.data.shard_files import folder_of, shards_at
from finetune.data.sides import Sides, one_class_only
from finetune.data.transforms import Augmentation
from finetune.errors import UsageError
from finetune.runtime import Runtime
from finetune.spec.choices import OnBadImage, TaskOfData
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.settings import DATA, check_settings

# What counts where nothing is given and no recipe has chosen.
BATCH_SIZE = 32
AUGMENTATION: Augmentation = "light"


class ImageFolderDataModule(LabelledFolder):
    """Train, val and test batches of a folder of images.

    Layouts::

        root/<class>/*.jpg                 val and test parts are held out, stratified
        root/train|val|test/<class>/*.jpg  as given; what is missing is held out from train
        x{0000..0123}.tar, *.parquet       see :mod:`finetune.data.labelled_shards`

    Batches are ``images`` ``uint8 (B, C, S, S)``, which a classifier converts and normalises, and
    ``labels`` int64 ``(B,)``, or of several labels an image float ``(B, K)`` with 1, 0 and NaN
    for not known, or numbers float ``(B, 1)``. The same seed gives the same splits, order and
    random views, whatever the number of workers.

    Args:
        root: the folder, or shards.
        manifest: CSV with ``path,label[,split][,fold][,group]`` that decides instead of folders.
        more: a manifest of further images, beside those of the folder or of ``manifest``; of a
            file that both have, its label counts.
        preprocessing: image size and interpolation; by default the trained network's own.
        class_names: the vocabulary; by default the checkpoint's, or else the folder's.
        augmentation: random views of training images: none, light, medium or strong; "auto" is
            light unless a recipe chooses.
        balanced: draw every class equally often in an epoch, rare images several times, instead
            of each image once; the final layer fitted in closed form weighs them likewise.
        batch_size: images a batch, dealt out to the processes where there are several; 32 where it
            is not given and no recipe chooses.
        num_workers: processes that read images; by default chosen from cores and data size.
        val_fraction: share held out for validation where the folder has no such split; 0: none.
        test_fraction: share held out for testing where the folder has no such split; 0: none.
        seed: of splits, and of order and random views unless ``training_seed`` is given.
        training_seed: of order and random views: fits that differ in it alone share their split.
        cache: cache decoded images: off, memory, disk, or auto (whichever pays).
        cache_dir: where, instead of the platform's cache folder.
        on_device: whether decoded images live on the device, where random views are then made for
            whole batches; auto: on an accelerator with room for them.
        on_bad_image: ``error`` stops before training, ``skip`` leaves such files out and says so.
        folds: number of cross-validation folds, made of everything that is not test.
        fold: the fold that is val, from 0.
        max_pixels: refuse images with more.
        max_decoding_mb: refuse images that take more memory to decode, in MiB; also what a
            process takes for those that it decodes at once.
        group_by: regular expression; images whose paths match alike stay on one side.
        allow_outside: accept files of the manifest that are not below the root.
        task: what is predicted: multiclass, one class an image; multilabel, several labels an
            image, with ``|`` between them in the manifest, or because the image lies in several
            class folders; regression, a number an image; auto: one of the first two, as the
            manifest has it, and class folders are one class each.
        label_columns: columns of the manifest, one a label, with 1, 0 or nothing (not known); or
            the one of numbers.

    Examples:
        >>> data = finetune.ImageFolderDataModule("pets", batch_size=8, num_workers=0)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.dtype, images.shape, data.class_names
        (torch.uint8, torch.Size([8, 3, 224, 224]), ('cat', 'dog'))
    """

    def __init__(
        self,
        root: str | Path,
        *,
        manifest: str | Path | None = None,
        more: str | Path | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        augmentation: Literal["auto", Augmentation] = "auto",
        balanced: bool = False,
        batch_size: int | None = None,
        num_workers: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        seed: int = 0,
        training_seed: int | None = None,
        cache: CacheMode = "auto",
        cache_dir: str | Path | None = None,
        on_device: OnDevice = "auto",
        on_bad_image: OnBadImage = "error",
        folds: int | None = None,
        fold: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
        group_by: str | None = None,
        allow_outside: bool = False,
        task: TaskOfData = "auto",
        label_columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        root, manifest, cache_dir = str(root), _text(manifest), _text(cache_dir)
        more = _text(more)
        # The two left out are the model's: Lightning refuses to log one key with two values.
        self.save_hyperparameters(ignore=["class_names", "preprocessing"])
        check_settings(self.hparams, DATA, option="data.")
        here = brought_here(root, cache_dir)
        by_rows = manifest is not None or bool(shards_at(here))
        if label_columns and (not by_rows or task == "multiclass"):
            raise UsageError(
                "Expected label_columns of a manifest with several labels an image, found "
                f"{'task multiclass' if by_rows else 'no manifest'}; leave it out."
            )
        if folds is not None and fold is None:
            raise UsageError(f"Expected fold, 0 ... {folds - 1}, together with folds={folds}.")
        self.given_root = here
        self.root = folder_of(here)
        self.manifest = manifest
        self.apply_recipe(
            augmentation=AUGMENTATION if augmentation == "auto" else augmentation,
            batch_size=BATCH_SIZE if batch_size is None else batch_size,
        )
        self.balanced = balanced
        self.num_workers = num_workers
        self.max_pixels = max_pixels
        self.max_decoding_mb = max_decoding_mb
        self.seed = seed if training_seed is None else training_seed
        self._given_preprocessing = preprocessing
        self._given_class_names = None if class_names is None else tuple(class_names)
        found_images = FoundImages(
            self.given_root,
            manifest=manifest,
            allow_outside=allow_outside,
            group_by=group_by,
            max_pixels=max_pixels,
            max_decoding_mb=max_decoding_mb,
            on_bad_image=on_bad_image,
            cache_dir=cache_dir,
            remember=cache != "off",
            task=task,
            label_columns=tuple(label_columns or ()),
            more=more,
        )
        settings = SplitSettings(val_fraction, test_fraction, seed, folds, fold)
        self._sides = Sides(found_images, settings)
        self._readers = Readers(self._sides, cache, cache_dir)
        self._choice = DeviceChoice(on_device)
        # A teacher's probabilities for the training images, (N, C), as train batches' third
        # tensor.
        self.soft_labels: Tensor | None = None

    def apply_recipe(self, *, augmentation: Augmentation, batch_size: int) -> None:
        """Take over settings that a recipe has chosen."""
        check_choice("augmentation", augmentation, get_args(Augmentation))
        if batch_size < 1:
            raise UsageError(f"Expected batch_size to be at least 1, found {batch_size}.")
        self.augmentation: Augmentation = augmentation
        self.batch_size = batch_size
        self.hparams.update(augmentation=augmentation, batch_size=batch_size)

    @property
    def preprocessing(self) -> Preprocessing:
        """What was given, or the attached classifier's, or ImageNet's usual one."""
        own = self._given_preprocessing or self._of_classifier("preprocessing")
        return own or Preprocessing()

    def prepare_for(self, preprocessing: Preprocessing, device: torch.device | None = None) -> None:
        """See images as this network does, where no preprocessing was given.

        Args:
            preprocessing: of the network.
            device: where it computes; where images may live, if they fit.
        """
        self._given_preprocessing = self._given_preprocessing or preprocessing
        self._choice.device = device

    @property
    def on_device(self) -> tuple[bool, str]:
        """Whether decoded images live on the device, and why."""
        images = len(self.images("train")) + len(self.images("val"))
        return self._choice.takes(images, self.preprocessing)

    @property
    def draw_weights(self) -> Tensor | None:
        """How often each training image is drawn, ``(N,)``; None: each once an epoch."""
        if not self.balanced:
            return None
        return balancing_weights([image.label for image in self.images("train")])

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """The training images of an epoch, by their indexes."""
        return shuffled_order(len(self.images("train")), generator, self.draw_weights)

    def setup(self, stage: str) -> None:
        """Find and open the images and put each on a side; called by Lightning.

        Raises:
            ImageFolderError: nothing to train on, one class only, no test images, ...
            ImageError: some files cannot be read, and ``on_bad_image`` is ``error``.
        """
        # Not at import, for the filter is the whole process's: workers are chosen from data's size.
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*", category=PossibleUserWarning
        )
        if stage == "fit":
            self._require("train")
            if self.num_classes < 2 and not self._found_images.found.has_numbers:
                raise one_class_only(self.root, self.class_names[0])
        elif stage in ("validate", "test"):
            self._require("val" if stage == "validate" else "test")

    @property
    def ends_lonely(self) -> bool:
        """Whether a process's last training batch is one image: batch norm cannot train on it."""
        runtime = Runtime()
        own = -(-len(self.images("train")) // runtime.world_size)
        size = runtime.share_of_batch(self.batch_size)
        return own > size and own % size == 1

    def train_dataloader(self) -> Loader:
        """Shuffled random views of the training images."""
        return self._loaders.training(
            self._require("train"),
            draw_weights=self.draw_weights,
            soft_labels=self.soft_labels,
            on_device=self.on_device[0],
            drop_last=self.ends_lonely,
        )

    def val_dataloader(self) -> Loader | list[Any]:
        """The val images in order; an empty list when none were held out."""
        if not self.images("val"):
            return []
        loaders = self._loaders
        # One of several processes is asked for all of them, where it compares what a phase found.
        if self.on_device[0] and Runtime().world_size == 1:
            return loaders.evaluation_on_device(self.images("val"))
        return loaders.evaluation(self.images("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images in order."""
        return self._loaders.evaluation(self._require("test"))

    def evaluation_dataloader(
        self, split: Split, *, preprocessings: Sequence[Preprocessing] | None = None
    ) -> DataLoader[Any]:
        """Any split, unshuffled and without augmentation.

        With ``preprocessings``, the images of a batch are a list with one tensor for each; every
        image is decoded once for all of them.
        """
        images = self._require(split)
        if preprocessings is None:
            return self._loaders.evaluation(images)
        return self._loaders.several(images, preprocessings)

    def reader(self, preprocessing: Preprocessing | None = None) -> Reader:
        """Reads an image at the size that a preprocessing asks for; decoded ones are cached."""
        return self._readers.of([preprocessing or self.preprocessing])

    @property
    def _loaders(self) -> ImageLoaders:
        return ImageLoaders(
            self._readers,
            self._choice,
            self.preprocessing,
            self.augmentation,
            Runtime().share_of_batch(self.batch_size),
            self.num_workers,
            self.seed,
        )

    def write_manifest(self, path: str | os.PathLike[str]) -> None:
        """Write who stands where as a CSV that ``manifest=`` reads back (``split.csv``)."""
        write_manifest(path, self.folder)

    def write_records(self, folder: str | os.PathLike[str]) -> None:
        """Write ``split.csv``, ``batch.png`` (training images as the network sees them) and,
        where files were left out, ``bad_images.csv`` into a run folder.
        """
        folder = Path(folder)
        self.write_manifest(folder / "split.csv")
        if self.bad_images:
            write_findings(folder / "bad_images.csv", self.bad_images)
        images, labels, *_ = self._loaders.first(self._require("train"), self.draw_weights)
        write_batch_image(images, labels, self.class_names, folder / "batch.png")


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
