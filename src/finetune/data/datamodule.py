"""From a folder of images to batches: the LightningDataModule of every command."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data.assignment import SplitSettings, check_classes_in_train, names_below
from finetune.data.cache import CacheMode, caching_reader
from finetune.data.dataloaders import make_loader, silence_worker_advice
from finetune.data.dataset import (
    ImageDataset,
    Reader,
    ShuffledDraws,
    balancing_weights,
    shuffled_order,
)
from finetune.data.decoding import MAX_PIXELS, ImageReader
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.findings import Finding, write_findings
from finetune.data.folder import SPLITS, ImageFolder, LabelledImage, Split
from finetune.data.found_images import FoundImages, OnBadImage
from finetune.data.manifest import write_manifest
from finetune.data.preview import MOST, write_batch_image
from finetune.data.sides import Sides
from finetune.data.transforms import (
    Augmentation,
    collate_bytes,
    evaluation_transform,
    training_transform,
)
from finetune.data.views import SeveralViews
from finetune.data.workers import choose_num_workers as choose_num_workers
from finetune.data.workers import reading_seconds
from finetune.errors import ImageFolderError, UsageError
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.settings import DATA, check_settings
from finetune.spec.splits import SplitRecord

# What counts where nothing is given and no recipe has chosen.
BATCH_SIZE = 32
AUGMENTATION: Augmentation = "light"


class ImageFolderDataModule(LightningDataModule):
    """Train, val and test batches of a folder of images.

    Layouts::

        root/<class>/*.jpg                 val and test parts are held out, stratified
        root/train|val|test/<class>/*.jpg  as given; what is missing is held out from train

    Batches are ``images`` float ``(B, C, S, S)`` in ``[0, 1]``, not normalised, and ``labels``
    int64 ``(B,)``. The same seed gives the same splits, order and random views, whatever the
    number of workers.

    Args:
        root: the folder.
        manifest: CSV with ``path,label[,split][,fold][,group]`` that decides instead of folders.
        preprocessing: image size and interpolation; by default the trained network's own.
        class_names: the vocabulary; by default the checkpoint's, or else the folder's.
        augmentation: random views of training images: none, light, medium or strong; "auto" is
            light unless a recipe chooses.
        balanced: draw every class equally often in an epoch, rare images several times, instead
            of each image once; the final layer fitted in closed form weighs them likewise.
        batch_size: images a batch; 32 where it is not given and no recipe chooses.
        num_workers: processes that read images; by default chosen from cores and data size.
        val_fraction: share held out for validation where the folder has no such split; 0: none.
        test_fraction: share held out for testing where the folder has no such split; 0: none.
        seed: of splits, and of order and random views unless ``training_seed`` is given.
        training_seed: of order and random views: fits that differ in it alone share their split.
        cache: cache decoded images: off, memory, disk, or auto (whichever pays).
        cache_dir: where, instead of the platform's cache folder.
        on_bad_image: ``error`` stops before training, ``skip`` leaves such files out and says so.
        folds: number of cross-validation folds, made of everything that is not test.
        fold: the fold that is val, from 0.
        max_pixels: refuse images with more.
        max_decoding_mb: refuse images that take more memory to decode, in MiB; also what a
            process takes for those that it decodes at once.
        group_by: regular expression; images whose paths match alike stay on one side.
        allow_outside: accept files of the manifest that are not below the root.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        manifest: str | Path | None = None,
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
        on_bad_image: OnBadImage = "error",
        folds: int | None = None,
        fold: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
        group_by: str | None = None,
        allow_outside: bool = False,
    ) -> None:
        super().__init__()
        root, manifest, cache_dir = str(root), _text(manifest), _text(cache_dir)
        # The two left out are the model's: Lightning refuses to log one key with two values.
        self.save_hyperparameters(ignore=["class_names", "preprocessing"])
        check_settings(self.hparams, DATA, option="data.")
        if folds is not None and fold is None:
            raise UsageError(f"Expected fold, 0 ... {folds - 1}, together with folds={folds}.")
        self.root = Path(root)
        self.manifest = manifest
        self.apply_recipe(
            augmentation=AUGMENTATION if augmentation == "auto" else augmentation,
            batch_size=BATCH_SIZE if batch_size is None else batch_size,
        )
        self.balanced = balanced
        self.num_workers = num_workers
        self.seed = seed if training_seed is None else training_seed
        self.max_pixels = max_pixels
        self.max_decoding_mb = max_decoding_mb
        self._given_preprocessing = preprocessing
        self._given_class_names = None if class_names is None else tuple(class_names)
        self._cache: tuple[CacheMode, str | None] = (cache, cache_dir)
        found_images = FoundImages(
            self.root,
            manifest=manifest,
            allow_outside=allow_outside,
            group_by=group_by,
            max_pixels=max_pixels,
            max_decoding_mb=max_decoding_mb,
            on_bad_image=on_bad_image,
            cache_dir=cache_dir,
            remember=cache != "off",
        )
        settings = SplitSettings(val_fraction, test_fraction, seed, folds, fold)
        self._sides = Sides(found_images, settings)
        self._readers: dict[ImageReader, Reader] = {}
        # A teacher's probabilities for the training images, (N, C), as train batches' third
        # tensor.
        self.soft_labels: Tensor | None = None

    def follow(self, record: SplitRecord, *, allow_reuse: bool = False) -> None:
        """Put each image on the side where an earlier fit had it, and only new ones elsewhere.

        Images are known by content, or else by their path below the root, wherever the folder lies.
        A manifest that says sides itself wins; what trained the fit is then refused as val or test.

        Args:
            record: of the fit, from its checkpoint.
            allow_reuse: judge images that trained all the same, with a warning.
        """
        self._sides.follow(record, allow_reuse=allow_reuse)

    @property
    def split_settings(self) -> SplitSettings:
        """How much is held out, and how."""
        return self._sides.settings

    @property
    def split_record(self) -> SplitRecord:
        """On which side each image stands, for the checkpoints of this fit."""
        return self._sides.record(self.folder, dict(self.hparams))

    @property
    def differences(self) -> str:
        """What has come, changed and gone since the fit that is followed; empty if nothing has."""
        return self._sides.differences(self.folder)

    @property
    def _limits(self) -> dict[str, int]:
        return {"max_pixels": self.max_pixels, "max_decoding_mb": self.max_decoding_mb}

    @property
    def _found_images(self) -> FoundImages:
        return self._sides.found_images

    def apply_recipe(self, *, augmentation: Augmentation, batch_size: int) -> None:
        """Take over settings that a recipe has chosen."""
        _check_choice("augmentation", augmentation, get_args(Augmentation))
        if batch_size < 1:
            raise UsageError(f"Expected batch_size to be at least 1, found {batch_size}.")
        self.augmentation: Augmentation = augmentation
        self.batch_size = batch_size
        self.hparams.update(augmentation=augmentation, batch_size=batch_size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The vocabulary: what was given, or the attached classifier's, or the folder's."""
        own = self._given_class_names or self._of_classifier("class_names")
        if own:
            return tuple(own)
        check_classes_in_train(self._found_images.found)
        return self._found_images.found.class_names

    @property
    def num_classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.class_names)

    @property
    def preprocessing(self) -> Preprocessing:
        """What was given, or the attached classifier's, or ImageNet's usual one."""
        own = self._given_preprocessing or self._of_classifier("preprocessing")
        return own or Preprocessing()

    def prepare_for(self, preprocessing: Preprocessing) -> None:
        """See images as this network does, where no preprocessing was given."""
        self._given_preprocessing = self._given_preprocessing or preprocessing

    @property
    def folder(self) -> ImageFolder:
        """Every image with its label in :attr:`class_names` and its side."""
        return self._sides.folder(self._given_class_names or self._of_classifier("class_names"))

    def images(self, split: Split) -> tuple[LabelledImage, ...]:
        """The images of a split, in the order of its unshuffled loader."""
        _check_choice("split", split, get_args(Split))
        return self._sides.of_split(self.folder, split)

    def names(self, split: Split) -> list[str]:
        """The paths of a split's images below the root, as a checkpoint keeps them."""
        return names_below(self.root, self.images(split))

    @property
    def draw_weights(self) -> Tensor | None:
        """How often each training image is drawn, ``(N,)``; None: each once an epoch."""
        if not self.balanced:
            return None
        return balancing_weights([image.label for image in self.images("train")])

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """The training images of an epoch, by their indexes."""
        return shuffled_order(len(self.images("train")), generator, self.draw_weights)

    def class_counts(self, split: Split) -> dict[str, int]:
        """Images of each class in a split, zeros included, in the order of the vocabulary."""
        counts = Counter(image.label for image in self.images(split))
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    @property
    def median_short_side(self) -> int:
        """Of the readable images, in pixels; 0 where there are none."""
        return self._found_images.median_short_side

    @property
    def findings(self) -> list[Finding]:
        """What :mod:`finetune.data.health` has to say about the folder, errors first."""
        return self._found_images.findings

    @property
    def bad_images(self) -> list[Finding]:
        """The files that cannot be read; with ``on_bad_image="skip"`` they are left out."""
        return self._found_images.bad_images

    def setup(self, stage: str) -> None:
        """Find and open the images and put each on a side; called by Lightning.

        Raises:
            ImageFolderError: nothing to train on, one class only, no test images, ...
            ImageError: some files cannot be read, and ``on_bad_image`` is ``error``.
        """
        silence_worker_advice()
        if stage == "fit":
            self._require("train")
            if self.num_classes < 2:
                raise ImageFolderError(self._one_class_message())
        elif stage in ("validate", "test"):
            self._require("val" if stage == "validate" else "test")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled random views of the training images."""
        images = self._require("train")
        transform = training_transform(self.preprocessing, self.augmentation, to_float=False)
        dataset = ImageDataset(images, transform, self.reader(), self.soft_labels)
        # A last batch of one image has no variance: batch norm cannot train on it.
        lonely = len(images) > self.batch_size and len(images) % self.batch_size == 1
        sampler = ShuffledDraws(len(images), self.seed, self.draw_weights)
        return self._loader(dataset, sampler=sampler, drop_last=lonely, collate_fn=collate_bytes)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The val images in order; an empty list when none were held out."""
        return self.evaluation_dataloader("val") if self.images("val") else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images in order."""
        return self.evaluation_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """All images in order, whatever their side."""
        return self._evaluation_loader(self.folder.images)

    def evaluation_dataloader(
        self, split: Split, *, preprocessings: Sequence[Preprocessing] | None = None
    ) -> DataLoader[Any]:
        """Any split, unshuffled and without augmentation.

        With ``preprocessings``, the images of a batch are a list with one tensor for each; every
        image is decoded once for all of them.
        """
        images = self._require(split)
        if preprocessings is None:
            return self._evaluation_loader(images)
        views = SeveralViews(preprocessings)
        reader = self._cached(views.reader(**self._limits))
        # A tuple of tensors where the dataset knows one; the default collation takes both.
        return self._loader(ImageDataset(images, views, reader))  # type: ignore[arg-type]

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
        loader = self.train_dataloader()
        first = itertools.islice(cast(ShuffledDraws, loader.sampler), MOST)
        images, labels, *_ = collate_bytes([loader.dataset[draw] for draw in first])
        write_batch_image(images, labels, self.class_names, folder / "batch.png")

    def summary(self) -> str:
        """One line: images of each side, classes, files left out."""
        counts = {split: len(self.images(split)) for split in SPLITS}
        text = ", ".join(f"{number} {split}" for split, number in counts.items() if number)
        text += f" images of {self.num_classes} classes"
        bad = len(self.bad_images)
        return f"{text}; {bad} unreadable files left out, see bad_images.csv" if bad else text

    def _of_classifier(self, attribute: str) -> Any:
        trainer = self.trainer
        return None if trainer is None else getattr(trainer.lightning_module, attribute, None)

    def _require(self, split: Split) -> tuple[LabelledImage, ...]:
        images = self.images(split)
        if not images:
            remedy = f"give {self.root}/{split}/<class>/"
            if split != "train":
                remedy += f" or a {split}_fraction above 0"
            if self._sides.followed is not None and self.images("train"):
                remedy = "a fit has trained on all others; add images, or give --data.manifest"
            raise ImageFolderError(f"Expected {split} images in {self.root}, found none; {remedy}.")
        return images

    def _one_class_message(self) -> str:
        only = self.class_names[0]
        inner = self.root / only
        nested = any((inner / name).is_dir() for name in ("train", "val", "test"))
        remedy = (
            f"did you mean --data.root {inner}?"
            if nested
            else "put each class's images into a folder of its own."
        )
        return f"Expected at least two classes in {self.root}, found only {only!r}; {remedy}"

    def reader(self, preprocessing: Preprocessing | None = None) -> Reader:
        """Reads an image at the size that a preprocessing asks for; decoded ones are cached."""
        wanted = preprocessing or self.preprocessing
        return self._cached(ImageReader.of([wanted], **self._limits))

    def _cached(self, reader: ImageReader) -> Reader:
        """One reader for all loaders that decode alike, so that they share what is cached."""
        if reader not in self._readers:
            mode, cache_dir = self._cache
            paths = self._found_images.paths
            self._readers[reader] = caching_reader(
                reader,
                self.root,
                mode=mode,
                images=len(paths),
                decode_seconds=reading_seconds(paths),
                cache_dir=cache_dir,
            )
        return self._readers[reader]

    def _evaluation_loader(self, images: Sequence[LabelledImage]) -> DataLoader[Any]:
        transform = evaluation_transform(self.preprocessing, to_float=False)
        dataset = ImageDataset(images, transform, self.reader())
        return self._loader(dataset, collate_fn=collate_bytes)

    def _loader(self, dataset: ImageDataset, **options: Any) -> DataLoader[Any]:
        return make_loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            **options,
        )


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"Expected {name} to be one of {', '.join(choices)}, found {value!r}.")
