"""What is known of a folder of labelled images: its classes, and who stands on which side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, get_args

from lightning import LightningDataModule

from finetune.data.assignment import SplitSettings, check_classes_in_train, names_below
from finetune.data.findings import Finding
from finetune.data.folder import SPLITS, ImageFolder, LabelledImage, Split
from finetune.data.found_images import FoundImages
from finetune.data.groups import groups_with_duplicates
from finetune.data.label_cells import check_labels_had
from finetune.data.sides import Sides, none_on_side, one_class_only
from finetune.errors import UsageError
from finetune.spec.images import label_counts
from finetune.spec.splits import SplitRecord
from finetune.tasks.known import task_for
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION


class LabelledFolder(LightningDataModule):
    """The answers that need no batch; found out when they are first asked for."""

    root: Path
    _sides: Sides
    _given_class_names: tuple[str, ...] | None

    def follow(
        self, record: SplitRecord, *, allow_reuse: bool = False, always: bool = False
    ) -> None:
        """Put each image on the side where an earlier fit had it, and only new ones elsewhere.

        Images are known by content, or else by their path below the root, wherever the folder lies.
        A manifest that says sides itself wins; what trained the fit is then refused as val or test.

        Args:
            record: of the fit, from its checkpoint.
            allow_reuse: judge images that trained all the same, with a warning.
            always: the folder or manifest says which images there are now, and a manifest decides
                on the sides of new ones alone: a fit goes on from weights that know the others.
        """
        self._sides.follow(record, allow_reuse=allow_reuse, always=always)

    @property
    def split_settings(self) -> SplitSettings:
        """How much is held out, and how."""
        return self._sides.settings

    @property
    def val_is_given(self) -> bool:
        """Whether folder or manifest say which images are val, which then were not dealt out."""
        return "val" in self._found_images.found.splits

    @property
    def split_record(self) -> SplitRecord:
        """On which side each image stands, for the checkpoints of this fit."""
        settings = {**self.hparams, "task": self.task_name}
        return self._sides.record(self.folder, settings)

    @property
    def differences(self) -> str:
        """What has come, changed and gone since the fit that is followed; empty if nothing has."""
        return self._sides.differences(self.folder)

    @property
    def _found_images(self) -> FoundImages:
        return self._sides.found_images

    @property
    def class_names(self) -> tuple[str, ...]:
        """The vocabulary: what was given, or the attached classifier's, or the folder's."""
        own = self._given_class_names or self._of_classifier("class_names")
        if own:
            return tuple(own)
        found = self._found_images.found
        check_classes_in_train(found)
        check_labels_had(found)
        if len(found.class_names) < 2 and not found.has_numbers:
            raise one_class_only(self.root, found.class_names[0])
        return found.class_names

    @property
    def task_name(self) -> str:
        """What is predicted, as the manifest or the folder has it."""
        return task_for(image.label for image in self._found_images.found.images[:1]).name

    @property
    def num_classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.class_names)

    @property
    def folder(self) -> ImageFolder:
        """Every image with its label in :attr:`class_names` and its side."""
        return self._sides.folder(self._given_class_names or self._of_classifier("class_names"))

    def images(self, split: Split) -> tuple[LabelledImage, ...]:
        """The images of a split, in the order of its unshuffled loader."""
        check_choice("split", split, get_args(Split))
        return self._sides.of_split(self.folder, split)

    def together(self, images: Sequence[LabelledImage]) -> list[Hashable | None]:
        """What keeps each image with others on one side of any split; None: nothing does."""
        return groups_with_duplicates(images)

    def names(self, split: Split) -> list[str]:
        """The paths of a split's images below the root, as a checkpoint keeps them."""
        return names_below(self.root, self.images(split))

    def class_counts(self, split: Split) -> dict[str, int]:
        """Images of each class in a split, zeros included, in the order of the vocabulary.

        Of numbers all images are of the one column.
        """
        counts = label_counts(self.images(split))
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

    def summary(self) -> str:
        """One line: images of each side, classes, files left out."""
        counts = {split: len(self.images(split)) for split in SPLITS}
        text = ", ".join(f"{number} {split}" for split, number in counts.items() if number)
        if self.task_name == MULTILABEL.name:
            text += f" images with several of {self.num_classes} labels each (multilabel; "
            text += "--data.task multiclass takes a cell for one class)"
        elif self.task_name == REGRESSION.name:
            numbers = [float(image.label) for image in self.images("train")]  # type: ignore[arg-type]
            text += f" images with a number each ({self.class_names[0]}: regression"
            text += f"; train {min(numbers):g} to {max(numbers):g})" if numbers else ")"
        else:
            text += f" images of {self.num_classes} classes"
        bad = len(self.bad_images)
        return f"{text}; {bad} unreadable files left out, see bad_images.csv" if bad else text

    def _of_classifier(self, attribute: str) -> Any:
        trainer = self.trainer
        return None if trainer is None else getattr(trainer.lightning_module, attribute, None)

    def _require(self, split: Split) -> tuple[LabelledImage, ...]:
        images = self.images(split)
        if not images:
            followed = self._sides.followed is not None and bool(self.images("train"))
            raise none_on_side(self.root, split, followed=followed)
        return images


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise UsageError(f"Expected {name} to be one of {', '.join(choices)}, found {value!r}.")
